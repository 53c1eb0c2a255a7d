"""From a picture to the encoder's input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cgspn.errors import are_numbers

HALF = (0.5, 0.5, 0.5)
# The largest side of a JPEG.
MAX_SIDE = 65535
# Far below it, the quotients overflow float32.
SMALLEST_STD = 1e-6
EIGHT_BITS = ("1", "L", "P", "CMYK", "YCbCr", "HSV")


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
        sides = (size, size) if isinstance(size, int) else size
        if not (are_numbers(sides, 2, int) and all(1 <= side <= MAX_SIDE for side in sides)):
            raise ValueError(f"size must be one or two whole numbers from 1 to {MAX_SIDE}, got {size!r}.")
        self.height, self.width = sides
        if not (are_numbers(mean, 3) and are_numbers(std, 3) and min(std) >= SMALLEST_STD):
            raise ValueError(
                f"mean and std need three values each, finite ones, and std at least {SMALLEST_STD}, "
                f"got {mean!r} and {std!r}."
            )
        if crop is not None and not (are_numbers([crop], 1) and 0 < crop <= 1):
            raise ValueError(f"crop must be in (0, 1], got {crop!r}.")
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

        Raises:
            ValueError: If ``image`` is no picture or has neither 8 nor 16 bits, or ``rng`` is no generator.
        """
        if not isinstance(image, Image.Image) or not min(image.size):
            raise ValueError(f"image must be a Pillow picture with pixels, got {_described(image)}.")
        if rng is not None and not isinstance(rng, np.random.Generator):
            raise ValueError(f"rng must be a NumPy generator or None, got {rng!r}.")
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
        # Rounding must not lead out of the picture.
        left, top = max(0, image.width - w) / 2, max(0, image.height - h) / 2
        return (left, top, min(left + w, image.width), min(top + h, image.height))

    def _random_box(self, image: Image.Image, rng: np.random.Generator) -> tuple[float, float, float, float]:
        """A random part: at least ``crop`` of the centre box's area, aspect changed by at most 4 : 3."""
        area = rng.uniform(self.crop or 1.0, 1.0)
        stretch = float(np.exp(rng.uniform(-0.5, 0.5) * np.log(4 / 3)))
        left, top, right, bottom = self._centre_box(image)
        w = min(image.width, (right - left) * area**0.5 * stretch)
        h = min(image.height, (bottom - top) * area**0.5 / stretch)
        x, y = rng.uniform(0, image.width - w), rng.uniform(0, image.height - h)
        return (x, y, min(x + w, image.width), min(y + h, image.height))


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts to RGB; transparent parts become white, 16 bits become 8.

    Raises:
        ValueError: If the picture's mode does not say what is black and what is white.
    """
    if image.mode == "RGB":
        return image
    if image.mode in ("RGBA", "LA", "PA") or ("transparency" in image.info and image.mode in ("1", "L", "P")):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode in EIGHT_BITS:
        return image.convert("RGB")
    # Pillow would make all above 255 white.
    if image.mode.startswith("I") and 0 <= (levels := np.asarray(image)).min() and levels.max() <= 65535:
        return Image.fromarray(((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)).convert("RGB")
    raise ValueError(
        f"A picture of mode {image.mode!r} with values beyond 8 or 16 bits cannot be shown as RGB; "
        f"valid modes: RGB, RGBA, LA, PA, I;16, {', '.join(EIGHT_BITS)}."
    )


def _described(image: Any) -> str:
    size = f" of {image.width} x {image.height}" if isinstance(image, Image.Image) else ""
    return f"{type(image).__name__}{size}"
