"""Label maps drawn over pictures, with a legend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

IGNORE_COLOUR = (0, 0, 0)
SHORTEST_SIDE = 384
LEGEND_ROWS = 14
OPACITY = 0.55


def colours(labels: np.ndarray, palette: Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
    """Colours (H, W, 3), uint8, of class indices (H, W); anything outside the palette is black."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(palette)] = palette
    return table[labels]


def overlay(
    image: Image.Image, labels: np.ndarray, classes: Sequence[str], palette: Sequence[Sequence[int]]
) -> Image.Image:
    """Blends a picture with its label map and adds a legend of the classes, largest first.

    Args:
        image: RGB picture.
        labels: Class indices of its pixels, shape (height, width).
        classes: Name of each class.
        palette: RGB colour of each class.
    """
    blended = Image.blend(image, Image.fromarray(colours(labels, palette)), OPACITY)
    factor = max(1, -(-SHORTEST_SIDE // min(blended.size)))
    blended = blended.resize((blended.width * factor, blended.height * factor), Image.Resampling.NEAREST)
    line = max(18, blended.height // (LEGEND_ROWS + 2))
    font = ImageFont.load_default(size=round(line * 0.6))
    indices, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts)[:LEGEND_ROWS]
    rows: list[tuple[int | None, str]] = [
        (int(indices[i]), f"{classes[indices[i]]}  {100 * counts[i] / labels.size:.1f} %") for i in order
    ]
    if len(indices) > len(rows):
        rows.append((None, f"and {len(indices) - len(rows)} more"))
    width = round(max(font.getlength(text) for _, text in rows)) + 3 * line
    sheet = Image.new("RGB", (blended.width + width, blended.height), "white")
    sheet.paste(blended, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for row, (index, text) in enumerate(rows):
        left, top = blended.width + line // 2, round((row + 0.75) * line)
        if index is not None:
            box = (left, top, left + round(line * 0.7), top + round(line * 0.7))
            draw.rectangle(box, fill=tuple(palette[index]), outline="black")
        draw.text((left + line, top + line * 0.35), text, fill="black", font=font, anchor="lm")
    return sheet


def write_prediction(
    folder: Path, picture: str, labels: Tensor, classes: Sequence[str], palette: Sequence[Sequence[int]]
) -> list[Path]:
    """Writes ``<name>.png`` (uint8, ADE20K's ids 1..150) and ``<name>_overlay.png``.

    Args:
        folder: Where the files go; made if missing.
        picture: Path of the picture.
        labels: Predicted class indices, shape (H, W), at the picture's size.
        classes: Name of each class.
        palette: RGB colour of each class.

    Returns:
        The two paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    indices = labels.cpu().numpy().astype(np.uint8)
    with Image.open(picture) as file:
        image = ImageOps.exif_transpose(file).convert("RGB")
    stem = Path(picture).stem
    paths = [folder / f"{stem}.png", folder / f"{stem}_overlay.png"]
    Image.fromarray(indices + 1).save(paths[0])
    overlay(image, indices, classes, palette).save(paths[1])
    return paths
