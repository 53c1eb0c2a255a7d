"""Samples kept in memory, for sets that fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from cgspn.data.bad_samples import BadSamples
from cgspn.data.stream import Decoder, read_shards
from cgspn.data.transforms import ImageTransform


class CachedSamples(Dataset):
    """All samples of shards, decoded once, read by (index, epoch).

    Pictures are kept at the encoder's size or, where training takes random crops, at their own.

    Args:
        shards: Names of the shards.
        transform: Makes the encoder's input.
        bad: Counts what cannot be read.
        fields: Those of ``text`` and ``label`` that each sample must have.
        train: Whether to augment.
        seed: Seed of the augmentation.
        num_classes: Number of classes, where ``fields`` has ``label``.

    Raises:
        ValueError: If no sample can be read.
    """

    def __init__(
        self,
        shards: Sequence[str],
        transform: ImageTransform,
        bad: BadSamples,
        fields: Sequence[str],
        train: bool,
        seed: int = 0,
        num_classes: int | None = None,
    ) -> None:
        self.transform, self.train, self.seed = transform, train, seed
        self.keep_size = train and transform.crop is not None
        decode = Decoder(None if self.keep_size else transform, bad, fields, None, num_classes)
        decoded = (decode(raw, 0) for raw in read_shards(shards, bad))
        self.samples: list[dict[str, Any]] = [sample for sample in decoded if sample is not None]
        if not self.samples:
            raise ValueError(f"No sample can be read from {len(shards)} shards such as {shards[0]!r}.")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        """Sample number ``item[0]``, augmented as in epoch ``item[1]``."""
        index, epoch = item
        sample = self.samples[index]
        if not self.train or not (self.keep_size or self.transform.flip):
            return sample
        rng = np.random.default_rng([self.seed, epoch, index])
        return {**sample, "pixels": self.transform.pixels(Image.fromarray(sample["pixels"]), rng)}
