"""Procedural textures: functions of continuous coordinates, so that every size samples the same surface.

A texture takes coordinate arrays ``x`` and ``y`` and the ``footprint`` of a pixel in the same units (a number
or an array), and returns values around 0 within about [-1, 1]. Detail finer than a pixel is faded out, which
is why larger pictures show more of it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray
Texture = Callable[[Array, Array, "Array | float"], Array]

_SIZE = 256
_LATTICE = np.random.default_rng(20240229).random((_SIZE, _SIZE), dtype=np.float32).ravel()


def lattice(i: Array, j: Array) -> Array:
    """Random value in [0, 1) of each integer cell, periodic with period 256."""
    return _LATTICE[((j & (_SIZE - 1)) << 8) | (i & (_SIZE - 1))]


def noise(x: Array, y: Array) -> Array:
    """Smooth value noise in [-1, 1] with a wavelength of about 1 cell."""
    fx, fy = np.floor(x), np.floor(y)
    i, j = fx.astype(np.int32), fy.astype(np.int32)
    tx, ty = x - fx, y - fy
    tx, ty = tx * tx * (3 - 2 * tx), ty * ty * (3 - 2 * ty)
    low, high = (j & 255) << 8, ((j + 1) & 255) << 8
    left, right = i & 255, (i + 1) & 255
    a, b = _LATTICE[low | left], _LATTICE[high | left]
    top = a + tx * (_LATTICE[low | right] - a)
    bottom = b + tx * (_LATTICE[high | right] - b)
    return 2 * (top + ty * (bottom - top)) - 1


def fractal(x: Array, y: Array, footprint: Array | float, octaves: int = 5) -> Array:
    """Sum of octaves of noise, each half as strong as the one before; unresolved octaves are left out."""
    total = np.zeros_like(x)
    for octave in range(octaves):
        frequency = 2.0**octave
        fade = np.clip(1.6 - 2 * frequency * footprint, 0, 1)
        if np.max(fade) <= 0:
            break
        total += (
            fade * 0.6 * 0.55**octave * noise(x * frequency + 17.3 * octave, y * frequency + 5.1 * octave)
        )
    return total


def lines(t: Array, width: float, footprint: Array | float) -> Array:
    """Antialiased lines of ``width`` at every integer ``t``: 1 on a line, 0 between."""
    distance = np.abs(t - np.rint(t))
    footprint = np.maximum(footprint, 1e-6)
    sharp = np.clip((width / 2 - distance) / footprint + 0.5, 0, 1) * np.minimum(1, width / footprint)
    blend = np.clip(2.5 * footprint - 0.75, 0, 1)
    return sharp + blend * (width - sharp)


def plain(x: Array, y: Array, footprint: Array | float) -> Array:
    """Nearly even: broad faint stains."""
    return 0.35 * fractal(x * 0.5, y * 0.5, 0.5 * footprint, 3)


def rough(x: Array, y: Array, footprint: Array | float) -> Array:
    """Fractal noise without direction."""
    return fractal(x, y, footprint)


def grain(x: Array, y: Array, footprint: Array | float) -> Array:
    """Fine speckles."""
    return fractal(3 * x, 3 * y, 3 * footprint, 4)


def bricks(x: Array, y: Array, footprint: Array | float) -> Array:
    """Courses of bricks twice as wide as high, with mortar and a tone for each brick."""
    row = np.floor(y)
    u = 0.5 * x + 0.5 * (row.astype(np.int32) & 1)
    tone = lattice(np.floor(u).astype(np.int32), row.astype(np.int32)) - 0.5
    tone *= np.clip(1.5 - footprint, 0, 1)
    mortar = np.maximum(lines(y, 0.16, footprint), lines(u, 0.08, 0.5 * footprint))
    return 0.7 * tone + 0.8 * mortar


def planks(x: Array, y: Array, footprint: Array | float) -> Array:
    """Boards along x, each with its own tone, offset and wood grain."""
    row = np.floor(y).astype(np.int32)
    u = x / 6 + lattice(row, row + 7)
    tone = lattice(np.floor(u).astype(np.int32), row) - 0.5
    gap = np.maximum(lines(y, 0.09, footprint), lines(u, 0.015, footprint / 6))
    wood = fractal(0.6 * x, 4 * y, 4 * footprint, 3)
    return np.clip(1.5 - footprint, 0, 1) * 0.8 * tone + 0.35 * wood - 0.8 * gap


def tiles(x: Array, y: Array, footprint: Array | float) -> Array:
    """Square tiles with joints and faint differences in tone."""
    tone = lattice(np.floor(x).astype(np.int32), np.floor(y).astype(np.int32)) - 0.5
    joint = np.maximum(lines(x, 0.07, footprint), lines(y, 0.07, footprint))
    return np.clip(1.5 - footprint, 0, 1) * 0.45 * tone - 0.8 * joint


def stripes(x: Array, y: Array, footprint: Array | float) -> Array:
    """Even stripes along y."""
    return (2 * lines(x, 0.5, footprint) - 1) * 0.7 + 0.2 * fractal(x, y, footprint, 3)


def folds(x: Array, y: Array, footprint: Array | float) -> Array:
    """Soft wavering folds along y, as of cloth."""
    return np.clip(1.5 - 2 * footprint, 0, 1) * np.sin(2 * np.pi * (x + 0.25 * noise(0.4 * x, 0.3 * y)))


def waves(x: Array, y: Array, footprint: Array | float) -> Array:
    """Ripples across y, bent by noise."""
    bend = noise(0.35 * x, 0.8 * y)
    crest = np.sin(2 * np.pi * (y + 0.8 * bend)) * np.clip(1.5 - 2 * footprint, 0, 1)
    return 0.6 * crest * (0.6 + 0.4 * bend) + 0.5 * fractal(0.5 * x, 3 * y, 3 * footprint, 4)


def blades(x: Array, y: Array, footprint: Array | float) -> Array:
    """Streaks along y in tufts, as of grass."""
    return 0.7 * fractal(4 * x, 0.9 * y, 4 * footprint, 4) + 0.5 * fractal(
        0.6 * x, 0.6 * y, 0.6 * footprint, 2
    )


def rows(x: Array, y: Array, footprint: Array | float) -> Array:
    """Furrows or rows of crops along y."""
    furrow = np.sin(2 * np.pi * (x + 0.08 * noise(x, 0.5 * y))) * np.clip(1.5 - 2 * footprint, 0, 1)
    return 0.7 * furrow + 0.4 * fractal(2 * x, 2 * y, 2 * footprint, 3)


def ridges(x: Array, y: Array, footprint: Array | float) -> Array:
    """Sharp ridges and gullies, as of rock."""
    folded = 1 - 2.4 * np.abs(fractal(0.8 * x + 0.4 * y, 0.8 * y, footprint, 2))
    return 0.6 * folded + 0.5 * fractal(2 * x, 2 * y, 2 * footprint, 4)


def leaves(x: Array, y: Array, footprint: Array | float) -> Array:
    """Clumps of foliage, lit above and dark below."""
    clump = noise(x, y) - noise(x + 0.1, y + 0.35)
    return 0.8 * clump + 0.8 * fractal(2 * x, 2 * y, 2 * footprint, 4)


def facade(x: Array, y: Array, footprint: Array | float) -> Array:
    """Rows of dark openings, one in each unit cell, some of them lit."""
    inside = lines(x + 0.5, 0.5, footprint) * lines(y + 0.5, 0.6, footprint)
    tone = lattice(np.floor(x).astype(np.int32), np.floor(y).astype(np.int32))
    bar = lines(2 * x, 0.12, 2 * footprint)
    return inside * (1 - bar) * np.where(tone > 0.8, 0.9, -0.6 - 0.4 * tone) + 0.12 * noise(4 * x, 4 * y)


TEXTURES: dict[str, Texture] = {
    function.__name__: function
    for function in (
        plain,
        rough,
        grain,
        bricks,
        planks,
        tiles,
        stripes,
        folds,
        waves,
        blades,
        rows,
        ridges,
        leaves,
        facade,
    )
}


def placed(
    texture: Texture, frequency: float, offset: tuple[float, float], aspect: float = 1.0, angle: float = 0.0
) -> Texture:
    """Scales, turns and shifts a texture: ``frequency`` cells a unit, x stretched by ``aspect``."""
    cos, sin = float(np.cos(angle)), float(np.sin(angle))

    def mapped(x: Array, y: Array, footprint: Array | float) -> Array:
        u = (cos * x + sin * y) * (frequency / aspect) + offset[0]
        v = (cos * y - sin * x) * frequency + offset[1]
        return texture(u, v, footprint * frequency)

    return mapped


def on_ground(texture: Texture, horizon: float, vanishing_x: float) -> Texture:
    """Lays a texture on the ground plane below the line ``y = horizon``, seen in perspective."""

    def mapped(x: Array, y: Array, footprint: Array | float) -> Array:
        depth = 1 / np.maximum(np.abs(y - horizon), 0.012)
        return texture((x - vanishing_x) * depth, depth, footprint * depth * np.maximum(1, 0.5 * depth))

    return mapped


def on_side(texture: Texture, horizon: float, vanishing_x: float) -> Texture:
    """Lays a texture on an upright plane that runs from the viewer to the vanishing point."""

    def mapped(x: Array, y: Array, footprint: Array | float) -> Array:
        depth = 1 / np.maximum(np.abs(x - vanishing_x), 0.02)
        return texture(depth, (y - horizon) * depth, footprint * depth * np.maximum(1, 0.5 * depth))

    return mapped
