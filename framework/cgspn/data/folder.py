"""Folders of pictures without labels or captions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from cgspn.data.bad_samples import BadSamples
from cgspn.data.collate import Collate
from cgspn.data.loader import EpochLoader, EvaluationLoader
from cgspn.data.module import ImageDataModule
from cgspn.data.transforms import HALF, ImageTransform

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")


def find_images(folder: str | Path) -> list[Path]:
    """Pictures below a folder, at any depth, sorted by path; or the one picture that ``folder`` names.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there is no picture in it, or ``folder`` is no path.
    """
    if not isinstance(folder, str | Path):
        raise ValueError(f"A folder must be a path, got {folder!r:.80}.")
    root = Path(folder)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise FileNotFoundError(f"No folder {str(root)!r}.")
    found: list[Path] = []
    seen: set[str] = set()
    for parent, folders, names in os.walk(root, followlinks=True):
        # A link may lead back to a folder above it.
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        found += [Path(parent, n) for n in names if n.lower().endswith(SUFFIXES) and n[0] != "."]
    if not found:
        raise ValueError(f"No picture in {str(root)!r}; known suffixes: {', '.join(SUFFIXES)}.")
    return sorted(found)


class ImageFolder(Dataset):
    """Pictures of a folder, read by (index, epoch).

    Args:
        paths: The pictures.
        transform: Makes the encoder's input.
        bad: Counts pictures that cannot be read.
        train: Whether to augment, and to put the next picture in the place of one that cannot be read.
        seed: Seed of the augmentation.
    """

    def __init__(
        self, paths: Sequence[Path], transform: ImageTransform, bad: BadSamples, train: bool, seed: int = 0
    ) -> None:
        self.paths, self.transform, self.bad = paths, transform, bad
        self.train, self.seed = train, seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any] | None:
        """The picture and its path; None if it cannot be read and is not to be replaced."""
        index, epoch = item
        rng = np.random.default_rng([self.seed, epoch, index]) if self.train else None
        for step in range(len(self.paths) if self.train else 1):
            path = self.paths[(index + step) % len(self.paths)]
            try:
                with Image.open(path) as image:
                    return {"pixels": self.transform.pixels(image, rng), "path": str(path)}
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                self.bad.add(str(path), error)
        if self.train:
            raise ValueError("None of the training pictures can be read.")
        return None


class ImageFolderDataModule(ImageDataModule):
    """Pictures of folders, at any depth: batches ``{"image": (B, 3, H, W), "path": list of B}``.

    A picture that cannot be read is a counted warning.

    Args:
        train: Folder for training, or None.
        val: Folder for validation, or None.
        test: Folder for tests, or None.
        predict: Folder or single picture to predict on, or None.
        batch_size: Samples in a batch of one process.
        image_size: Side of the encoder's square input, or (height, width).
        mean: Mean of each channel that the encoder expects, of a picture in [0, 1].
        std: Standard deviation of each channel that the encoder expects.
        crop: Smallest share of a training picture that a random crop keeps; None takes no random crop.
        flip: Whether training pictures are mirrored at random.
        seed: Seed of the order and the augmentation.
        num_workers: Processes that load.
    """

    def __init__(
        self,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        predict: str | None = None,
        batch_size: int = 64,
        image_size: int | list[int] = 224,
        mean: Sequence[float] = HALF,
        std: Sequence[float] = HALF,
        crop: float | None = None,
        flip: bool = False,
        seed: int = 0,
        num_workers: int = 2,
    ) -> None:
        super().__init__(batch_size, image_size, mean, std, crop, flip, seed, num_workers)
        self.folders = {"train": train, "val": val, "test": test, "predict": predict}

    def find(self, split: str) -> None:
        """Looks for the folder."""
        if folder := self.folders[split]:
            find_images(folder)

    def train_dataloader(self) -> EpochLoader | EvaluationLoader:
        """Shuffled, augmented pictures; the last, smaller batch is left out."""
        return self._split("train")

    def val_dataloader(self) -> EpochLoader | EvaluationLoader | list:
        """Pictures in order of their paths; nothing if no folder is given."""
        return self._split("val") if self.folders["val"] else []

    def test_dataloader(self) -> EpochLoader | EvaluationLoader:
        """Pictures in order of their paths."""
        return self._split("test")

    def predict_dataloader(self) -> EpochLoader | EvaluationLoader:
        """Pictures in order of their paths."""
        return self._split("predict")

    def _split(self, split: str) -> EpochLoader | EvaluationLoader:
        folder, train = self.folders[split], split == "train"
        if folder is None:
            given = [name for name, value in self.folders.items() if value]
            raise ValueError(
                f"ImageFolderDataModule has no folder {split!r}; given: {', '.join(given) or 'none'}."
            )
        transform = self.train_transform if train else self.transform
        dataset = ImageFolder(find_images(folder), transform, self.bad_samples, train, self.seed)
        return self.loader(dataset, len(dataset), Collate(transform), train)
