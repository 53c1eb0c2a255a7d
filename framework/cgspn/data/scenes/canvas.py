"""The canvas: fills shapes with paint, antialiased, and keeps label and instance maps beside the picture.

Scene coordinates: the origin is the centre of the picture, y points down and runs from -0.5 to 0.5 over its
height, x has the same unit. A tilted camera turns everything about the origin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from cgspn.data.scenes.palette import Light
from cgspn.data.scenes.textures import Texture

Shape = np.ndarray


@dataclass(frozen=True)
class Paint:
    """A surface.

    Attributes:
        color: RGB in [0, 1], shape (3,).
        texture: Scalar texture in scene coordinates, or None for an even surface.
        contrast: Strength of the texture.
        bright: Colour at texture 1 (default: twice ``color``).
        dark: Colour at texture -1 (default: black).
        gradient: Relative change of brightness over the shape's extent, rightwards and downwards.
    """

    color: np.ndarray
    texture: Texture | None = None
    contrast: float = 0.3
    bright: np.ndarray | None = None
    dark: np.ndarray | None = None
    gradient: tuple[float, float] = (0.0, 0.0)

    def __call__(self, x: np.ndarray, y: np.ndarray, pixel: float) -> np.ndarray:
        """Colour at the scene coordinates ``x``, ``y``; shape (..., 3) or broadcastable to it."""
        rgb: np.ndarray = self.color
        if self.texture is not None:
            t = (self.contrast * self.texture(x, y, pixel)).astype(np.float32)[..., None]
            if self.bright is None and self.dark is None:
                rgb = rgb * (1 + t)
            else:
                up = self.color if self.bright is None else self.bright - self.color
                down = -self.color if self.dark is None else self.dark - self.color
                rgb = rgb + np.maximum(t, 0) * up + np.maximum(-t, 0) * down
        return rgb


class Canvas:
    """A picture in the making.

    Args:
        height: Rows of the picture.
        width: Columns of the picture.
        light: The light of the scene.
        tilt: Angle of the camera about its axis, in radians.
    """

    def __init__(self, height: int, width: int, light: Light, tilt: float = 0.0) -> None:
        self.height, self.width = height, width
        self.light = light
        self.pixel = 1 / height
        self.half_width = 0.5 * width / height
        self.rgb = np.zeros((height, width, 3), np.float32)
        self.labels = np.zeros((height, width), np.uint8)
        self.instances = np.zeros((height, width), np.int16)
        self.instance = 0
        cos, sin = np.cos(tilt), np.sin(tilt)
        self._to_pixels = np.array([[cos, sin], [-sin, cos]]) * height
        columns = ((np.arange(width) + 0.5) / height - self.half_width).astype(np.float32)
        lines = ((np.arange(height) + 0.5) / height - 0.5).astype(np.float32)
        self.x = np.float32(cos) * columns - np.float32(sin) * lines[:, None]
        self.y = np.float32(sin) * columns + np.float32(cos) * lines[:, None]

    def fill(
        self, shapes: Shape | Sequence[Shape], paint: Paint, label: int | None = None, haze: float = 0.0
    ) -> None:
        """Fills polygons, later ones over earlier ones.

        Args:
            shapes: One polygon or several, each (N, 2) in scene coordinates; their union is painted.
            paint: The surface.
            label: Class id written where the shape covers at least half of a pixel; None keeps the labels.
            haze: Share of the haze's colour that is mixed in.
        """
        covered = self._cover([shapes] if isinstance(shapes, np.ndarray) else shapes)
        if covered is None:
            return
        window, coverage = covered
        x, y = self.x[window], self.y[window]
        color = paint(x, y, self.pixel)
        right, down = paint.gradient
        if right or down:
            ramp_x = np.linspace(-0.5 * right, 0.5 * right, x.shape[1], dtype=np.float32)
            ramp_y = np.linspace(-0.5 * down, 0.5 * down, x.shape[0], dtype=np.float32)
            color = color * (1 + ramp_x + ramp_y[:, None])[..., None]
        if haze > 0:
            color = color + haze * (self.light.haze - color)
        target = self.rgb[window]
        target += coverage[..., None] * (color - target)
        if label is not None:
            inside = coverage >= 0.5
            self.labels[window][inside] = label
            self.instances[window][inside] = self.instance

    def darken(self, shapes: Shape | Sequence[Shape], strength: float) -> None:
        """Darkens what is inside the polygons, as a shadow does; labels stay."""
        covered = self._cover([shapes] if isinstance(shapes, np.ndarray) else shapes)
        if covered is not None:
            window, coverage = covered
            self.rgb[window] *= (1 - strength * coverage)[..., None]

    def _cover(self, shapes: Sequence[Shape]) -> tuple[tuple[slice, slice], np.ndarray] | None:
        """Window of the picture that the polygons touch, and the share of each of its pixels they cover."""
        points = np.concatenate(shapes) @ self._to_pixels.T
        points += (0.5 * self.width, 0.5 * self.height)
        left, top = np.floor(points.min(0)).astype(int)
        right, bottom = np.ceil(points.max(0)).astype(int)
        left, right = max(left, 0), min(right, self.width)
        top, bottom = max(top, 0), min(bottom, self.height)
        if left >= right or top >= bottom:
            return None
        samples = 4 if (right - left) * (bottom - top) <= 256 * 256 else 2
        mask = Image.new("L", ((right - left) * samples, (bottom - top) * samples))
        pencil = ImageDraw.Draw(mask)
        # Pillow fills pixel centres at integer coordinates.
        points = (points - (left, top)) * samples - 0.5
        start = 0
        for shape in shapes:
            pencil.polygon(points[start : start + len(shape)].ravel().tolist(), fill=255)
            start += len(shape)
        coverage = np.asarray(mask.reduce(samples), np.float32) * np.float32(1 / 255)
        return (slice(top, bottom), slice(left, right)), coverage
