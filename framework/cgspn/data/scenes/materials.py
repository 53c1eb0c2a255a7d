"""Paints drawn at random: a colour from a palette under one of several textures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cgspn.data.scenes.canvas import Paint
from cgspn.data.scenes.palette import color
from cgspn.data.scenes.textures import TEXTURES, Texture, placed

Rng = np.random.Generator


def choose(rng: Rng, names: Sequence[str]) -> str:
    """One of the names, evenly."""
    return names[int(rng.integers(len(names)))]


def surface(
    rng: Rng,
    palette: str,
    textures: Sequence[str] = ("plain",),
    *,
    cell: float = 0.1,
    contrast: float = 0.4,
    project: Callable[[Texture], Texture] | None = None,
    gradient: tuple[float, float] = (0.0, 0.0),
) -> Paint:
    """A paint with a random colour, texture, scale and strength.

    Args:
        rng: Source of the random choices.
        palette: Name of the palette.
        textures: Textures to choose from.
        cell: Mean size of a texture's cell in scene units.
        contrast: Mean strength of the texture.
        project: Perspective that the texture is seen in, such as the ground's.
        gradient: See ``Paint``.
    """
    base = color(rng, palette)
    name = choose(rng, textures)
    frequency = float(np.exp(rng.uniform(-0.5, 0.5))) / cell
    offset = (float(rng.uniform(0, 200)), float(rng.uniform(0, 200)))
    strength = contrast * float(rng.uniform(0.5, 1.4))
    accented, accent = rng.random() < 0.4, color(rng, palette)
    texture = placed(TEXTURES[name], frequency, offset)
    return Paint(
        base,
        project(texture) if project else texture,
        strength,
        bright=0.3 * base + 0.7 * accent if accented else None,
        dark=0.25 * base if accented else None,
        gradient=gradient,
    )


def even(rgb: np.ndarray, factor: float = 1.0, gradient: tuple[float, float] = (0.0, 0.0)) -> Paint:
    """An even surface of a colour made lighter or darker."""
    return Paint(np.clip(rgb * np.float32(factor), 0, 1), gradient=gradient)


def shaded(paint: Paint, factor: float) -> Paint:
    """The same surface seen lighter or darker, as on another side of a solid."""

    def scale(rgb: np.ndarray | None) -> np.ndarray | None:
        return None if rgb is None else np.clip(rgb * np.float32(factor), 0, 1)

    return Paint(
        np.clip(paint.color * np.float32(factor), 0, 1),
        paint.texture,
        paint.contrast,
        scale(paint.bright),
        scale(paint.dark),
        paint.gradient,
    )
