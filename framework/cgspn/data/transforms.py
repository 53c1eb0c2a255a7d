"""From a picture to the encoder's input."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

HALF = (0.5, 0.5, 0.5)
# The largest side of a JPEG.
MAX_SIDE = 65535


class ImageTransform:
    """Resizes a picture with antialiasing, crops it to ``size`` and normalises it.

    Args:
        size: Side of the square result, or (height, width).
        mean: Mean of each channel of a picture in [0, 1].
        std: Standard deviation of each channel.
        crop: Smallest share of the picture's area that a random crop keeps, in (0, 1]; None takes no random
            crop: the picture is scaled until it covers ``size`` and its centre is kept.
        flip: Mirrors every other picture left to right. Not for captions that say left and right.

    Raises:
        ValueError: If a size, share or standard deviation is not positive, or a size too large.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        mean: Sequence[float] = HALF,
        std: Sequence[float] = HALF,
        crop: float | None = None,
        flip: bool = False,
    ) -> None:
        sides = (size, size) if isinstance(size, int) else tuple(size)
        if len(sides) != 2 or not all(1 <= side <= MAX_SIDE for side in sides):
            raise ValueError(f"size must be one or two numbers from 1 to {MAX_SIDE}, got {size}.")
        self.height, self.width = sides
        if not (len(mean) == len(std) == 3 and all(map(math.isfinite, (*mean, *std))) and min(std) > 0):
            raise ValueError(f"mean and std need three values and std positive ones, got {mean} and {std}.")
        if crop is not None and not 0 < crop <= 1:
            raise ValueError(f"crop must be in (0, 1], got {crop}.")
        self.mean, self.std = tuple(mean), tuple(std)
        self.crop, self.flip = crop, flip

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> Tensor:
        """Returns the normalised picture, float32, shape (3, H, W); see ``pixels``."""
        return self.normalise(torch.from_numpy(self.pixels(image, rng)))

    def pixels(self, image: Image.Image, rng: np.random.Generator | None = None) -> np.ndarray:
        """Decodes, crops and resizes.

        Args:
            image: The picture; it may be opened and not decoded yet.
            rng: Source of the random crop and flip; None keeps the centre and does not flip.

        Returns:
            RGB values, uint8, shape (H, W, 3).
        """
        random_crop = rng is not None and self.crop is not None
        if not random_crop:
            # A JPEG much larger than needed is decoded at a half, a quarter or an eighth.
            image.draft("RGB", (self.width, self.height))
        image = to_rgb(image)
        box = self._random_box(image, rng) if random_crop and rng is not None else self._centre_box(image)
        if (image.width, image.height) != (self.width, self.height) or box != (0, 0, self.width, self.height):
            image = image.resize((self.width, self.height), Image.Resampling.BICUBIC, box=box)
        pixels = np.array(image)
        if rng is not None and self.flip and rng.random() < 0.5:
            pixels = pixels[:, ::-1].copy()
        return pixels

    def normalise(self, pixels: Tensor) -> Tensor:
        """Turns uint8 (..., H, W, 3) into normalised float32 (..., 3, H, W), contiguous."""
        scale = torch.tensor([1 / (255 * std) for std in self.std]).view(3, 1, 1)
        shift = torch.tensor([-mean / std for mean, std in zip(self.mean, self.std, strict=True)]).view(
            3, 1, 1
        )
        planes = pixels.movedim(-1, -3).to(torch.float32, memory_format=torch.contiguous_format)
        return planes.mul_(scale).add_(shift)

    def _centre_box(self, image: Image.Image) -> tuple[float, float, float, float]:
        """The largest part of the picture with the aspect ratio of the result, around its centre."""
        scale = min(image.width / self.width, image.height / self.height)
        w, h = scale * self.width, scale * self.height
        left, top = (image.width - w) / 2, (image.height - h) / 2
        return (left, top, left + w, top + h)

    def _random_box(self, image: Image.Image, rng: np.random.Generator) -> tuple[float, float, float, float]:
        """A random part: at least ``crop`` of the centre box's area, aspect changed by at most 4 : 3."""
        area = rng.uniform(self.crop or 1.0, 1.0)
        stretch = float(np.exp(rng.uniform(-0.5, 0.5) * np.log(4 / 3)))
        left, top, right, bottom = self._centre_box(image)
        w = min(image.width, (right - left) * area**0.5 * stretch)
        h = min(image.height, (bottom - top) * area**0.5 / stretch)
        x, y = rng.uniform(0, image.width - w), rng.uniform(0, image.height - h)
        return (x, y, x + w, y + h)


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts to RGB; transparent parts become white."""
    if image.mode == "RGB":
        return image
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
