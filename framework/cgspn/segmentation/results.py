"""What an evaluation leaves in the run's folder for reports: figures as JSON, some pictures as arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

RESULTS = "segmentation.json"
EXAMPLES = "segmentation_examples.npz"
NUM_EXAMPLES = 8
LONGEST_SIDE = 320


class Example(NamedTuple):
    """One evaluated picture: RGB ``image`` (H, W, 3), ``truth`` and ``labels`` (H, W), all uint8."""

    name: str
    image: np.ndarray
    truth: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, path: str, image: Tensor, truth: Tensor, labels: Tensor) -> Example:
        """Shrinks mmcv's BGR picture (3, H, W) and both label maps to a size fit for a report."""
        height, width = truth.shape
        factor = min(1.0, LONGEST_SIDE / max(height, width))
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        pixels = image.flip(0).permute(1, 2, 0).cpu().numpy()
        maps = [
            np.asarray(
                Image.fromarray(m.cpu().numpy().astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
            )
            for m in (truth, labels)
        ]
        return cls(Path(path).name, np.asarray(Image.fromarray(pixels).resize(size)), *maps)


class Examples(NamedTuple):
    """Pictures of an evaluation, the names of all classes and their colours (num_classes, 3), uint8."""

    pictures: list[Example]
    classes: list[str]
    palette: np.ndarray


def write_results(folder: Path, figures: Mapping[str, Any]) -> None:
    """Writes the figures of an evaluation."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS).write_text(json.dumps(figures, indent=1) + "\n")


def write_examples(
    folder: Path, pictures: Sequence[Example], classes: Sequence[str], palette: Sequence[Sequence[int]]
) -> None:
    """Writes pictures with truth and prediction, and what the labels mean."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"classes": np.array(classes), "palette": np.array(palette, dtype=np.uint8)}
    for i, picture in enumerate(pictures):
        arrays.update((f"{i}/{field}", np.asarray(value)) for field, value in picture._asdict().items())
    np.savez_compressed(folder / EXAMPLES, **arrays)


def read_examples(folder: Path) -> Examples:
    """Reads what ``write_examples`` wrote."""
    with np.load(folder / EXAMPLES) as arrays:
        count = sum(name.endswith("/name") for name in arrays.files)
        pictures = [
            Example(str(arrays[f"{i}/name"]), *(arrays[f"{i}/{field}"] for field in Example._fields[1:]))
            for i in range(count)
        ]
        return Examples(pictures, arrays["classes"].tolist(), arrays["palette"])
