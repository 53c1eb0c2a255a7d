"""From samples to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cgspn.data.transforms import ImageTransform


class Collate:
    """Stacks samples ``{"pixels": uint8 (H, W, 3), ...}`` to ``{"image": float32 (B, 3, H, W), ...}``.

    ``label`` becomes an int64 tensor (B,), other values become lists. Samples that are None are left out;
    nothing left makes an empty batch.
    """

    def __init__(self, transform: ImageTransform) -> None:
        self.transform = transform

    def __call__(self, samples: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
        """Makes a batch of the samples, which all have the same keys."""
        good = [sample for sample in samples if sample is not None]
        if not good:
            return {}
        pixels = torch.from_numpy(np.stack([sample["pixels"] for sample in good]))
        batch: dict[str, Any] = {"image": self.transform.normalise(pixels)}
        for key in good[0]:
            if key == "label":
                batch[key] = torch.tensor([sample[key] for sample in good])
            elif key != "pixels":
                batch[key] = [sample[key] for sample in good]
        return batch
