"""Pictures with truth and predictions, as one sheet of small images."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from cgspn.reports.rows import Row
from cgspn.segmentation.overlay import colours
from cgspn.segmentation.results import Example, Examples

NUM_PICTURES = 6
LEGEND_CLASSES = 24


@dataclasses.dataclass
class Sheet:
    """Cells of a table of pictures: one line per picture; None where a run does not have it.

    Attributes:
        header: What each column shows.
        lines: Name of each picture and its images.
        legend: Name and colour of the classes that appear most, largest first.
    """

    header: list[str]
    lines: list[tuple[str, list[Image.Image | None]]]
    legend: list[tuple[str, tuple[int, int, int]]]


def sheet(rows: Sequence[Row]) -> Sheet | None:
    """Puts the pictures of all runs side by side; None if no run kept any."""
    known = [(row, row.run.examples) for row in rows if row.run.examples is not None]
    if not known:
        return None
    first = known[0][1]
    pictures = first.pictures[:NUM_PICTURES]
    lines: list[tuple[str, list[Image.Image | None]]] = []
    areas = np.zeros(256, dtype=np.int64)
    for picture in pictures:
        images: list[Image.Image | None] = [Image.fromarray(picture.image), draw(picture.truth, first)]
        areas += np.bincount(picture.truth.ravel(), minlength=256)
        for _, examples in known:
            match = find(examples, picture)
            images.append(None if match is None else draw(match.labels, first))
            if match is not None:
                areas += np.bincount(match.labels.ravel(), minlength=256)
        lines.append((picture.name, images))
    areas[len(first.classes) :] = 0
    order = [i for i in np.argsort(-areas)[:LEGEND_CLASSES] if areas[i]]
    legend = [(first.classes[i], tuple(int(v) for v in first.palette[i])) for i in order]
    return Sheet(["picture", "truth", *(row.label for row, _ in known)], lines, legend)  # type: ignore[arg-type]


def find(examples: Examples, picture: Example) -> Example | None:
    """The same picture in another run's examples."""
    same = (e for e in examples.pictures if e.name == picture.name and np.array_equal(e.truth, picture.truth))
    return next(same, None)


def draw(labels: np.ndarray, examples: Examples) -> Image.Image:
    """A label map in its colours; ignored pixels are black."""
    return Image.fromarray(colours(labels, examples.palette))


def contact_sheet(content: Sheet, height: int = 128, gap: int = 4) -> bytes:
    """All images in one PNG file, without words."""
    heights = [max(image.height for image in images if image) for _, images in content.lines]
    scale = height / max(heights)
    widths = [
        max((round(images[c].width * scale) for _, images in content.lines if images[c]), default=height)  # type: ignore[union-attr]
        for c in range(len(content.header))
    ]
    canvas = Image.new(
        "RGB", (sum(widths) + gap * (len(widths) - 1), (height + gap) * len(content.lines)), "white"
    )
    for line, (_, images) in enumerate(content.lines):
        left = 0
        for image, width in zip(images, widths, strict=True):
            if image is not None:
                size = (round(image.width * scale), round(image.height * scale))
                canvas.paste(image.resize(size, Image.Resampling.NEAREST), (left, line * (height + gap)))
            left += width + gap
    return as_png(canvas)


def as_png(image: Image.Image) -> bytes:
    """The image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True)
    return buffer.getvalue()
