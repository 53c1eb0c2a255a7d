"""Built things out of doors: buildings, skyscrapers, houses, fences, tents."""

from __future__ import annotations

import numpy as np

from cgspn.data.scenes.canvas import Canvas, Paint
from cgspn.data.scenes.classes import CLASSES
from cgspn.data.scenes.materials import choose, even, shaded, surface
from cgspn.data.scenes.palette import color
from cgspn.data.scenes.shapes import polygon, rectangle
from cgspn.data.scenes.solids import box, cast_shadow, shade_of
from cgspn.data.scenes.textures import facade, placed

Rng = np.random.Generator
MASONRY = ("bricks", "plain", "tiles", "stripes", "planks", "rough")


def _windows(rng: Rng, wall: Paint, left: float, top: float, cell: float, aspect: float) -> Paint:
    """The wall with rows of windows whose first cell starts at ``left``, ``top``."""
    frequency = 1 / cell
    texture = placed(facade, frequency, (-left * frequency / aspect, -top * frequency), aspect)
    return Paint(
        wall.color,
        texture,
        0.9,
        bright=color(rng, "sky"),
        dark=0.25 * color(rng, "sky"),
        gradient=wall.gradient,
    )


def building(canvas: Canvas, rng: Rng, x: float, y: float, size: float, haze: float) -> None:
    """A block of masonry with rows of windows, ``size`` high, at most twice as wide."""
    _block(
        canvas,
        rng,
        CLASSES["building"],
        x,
        y,
        size,
        size * rng.uniform(0.7, 1.7),
        int(rng.integers(2, 5)),
        haze,
    )


def skyscraper(canvas: Canvas, rng: Rng, x: float, y: float, size: float, haze: float) -> None:
    """A tower of many storeys, ``size`` high and a quarter to a third as wide, sometimes stepped."""
    label, w = CLASSES["skyscraper"], size * rng.uniform(0.24, 0.36)
    storeys = int(rng.integers(9, 16))
    if rng.random() < 0.5:
        _block(canvas, rng, label, x, y, size, 0.6 * w, storeys, haze)
        _block(canvas, rng, label, x, y, size * rng.uniform(0.6, 0.85), w, storeys, haze)
    else:
        _block(canvas, rng, label, x, y, size, w, storeys, haze)


def _block(
    canvas: Canvas, rng: Rng, label: int, x: float, y: float, size: float, w: float, storeys: int, haze: float
) -> None:
    wall = surface(rng, "masonry", MASONRY, cell=0.06 * size, contrast=0.35, gradient=shade_of(canvas))
    side = float(rng.uniform(-0.25, 0.25)) * w
    left, right, top = x - w / 2, x + w / 2, y - size
    box(canvas, wall, label, left, top, right, y, side=side, lid=0.12 * abs(side), haze=haze)
    cell = 0.92 * size / storeys
    columns = max(2, round(w / (cell * rng.uniform(0.7, 1.2))))
    aspect = 0.94 * w / (columns * cell)
    panes = _windows(rng, wall, left + 0.03 * w, top + 0.04 * size, cell, aspect)
    canvas.fill(
        rectangle(left + 0.03 * w, top + 0.04 * size, right - 0.03 * w, y - 0.04 * size), panes, label, haze
    )


def house(canvas: Canvas, rng: Rng, x: float, y: float, size: float, haze: float) -> None:
    """A small house with a pitched roof, a door and windows, ``size`` high."""
    label, w = CLASSES["house"], size * rng.uniform(1.0, 1.5)
    cast_shadow(canvas, x, y, w, 0.6 * size)
    wall = surface(rng, "masonry", MASONRY, cell=0.08 * size, contrast=0.3, gradient=shade_of(canvas))
    eaves = y - rng.uniform(0.5, 0.62) * size
    left, right = x - 0.45 * w, x + 0.45 * w
    canvas.fill(rectangle(left, eaves, right, y), wall, label, haze)
    roof = surface(
        rng, "masonry", ("tiles", "bricks", "planks", "plain", "rough"), cell=0.07 * size, contrast=0.35
    )
    roof = shaded(roof, rng.uniform(0.6, 1.0))
    over = 0.06 * w
    if rng.random() < 0.5:
        canvas.fill(
            polygon((left, eaves + 0.01 * size), (x, y - size), (right, eaves + 0.01 * size)),
            wall,
            label,
            haze,
        )
        thick = 0.1 * size
        canvas.fill(
            polygon(
                (left - over, eaves + 0.05 * size),
                (x, y - size + 0.03 * size),
                (right + over, eaves + 0.05 * size),
                (right + over, eaves - thick),
                (x, y - size - thick),
                (left - over, eaves - thick),
            ),
            roof,
            label,
            haze,
        )
    else:
        inset = rng.uniform(0.05, 0.3) * w
        canvas.fill(
            polygon(
                (left - over, eaves),
                (left + inset, y - size),
                (right - inset, y - size),
                (right + over, eaves),
            ),
            roof,
            label,
            haze,
        )
    glass = even(color(rng, "sky"), rng.uniform(0.3, 0.9))
    door_x = x + rng.uniform(-0.25, 0.25) * w
    canvas.fill(
        rectangle(door_x - 0.06 * w, y - 0.32 * size, door_x + 0.06 * w, y),
        even(color(rng, "paint"), 0.8),
        label,
        haze,
    )
    panes = [
        rectangle(cx - 0.07 * w, eaves + 0.1 * size, cx + 0.07 * w, eaves + 0.28 * size)
        for cx in (x - 0.29 * w, x + 0.29 * w)
        if abs(cx - door_x) > 0.12 * w
    ]
    if panes:
        canvas.fill(panes, glass, label, haze)


def fence(canvas: Canvas, rng: Rng, x: float, y: float, size: float, haze: float) -> None:
    """A run of pickets on two rails, ``size`` high and several times as wide."""
    label, w = CLASSES["fence"], size * rng.uniform(2.5, 5.0)
    wood = surface(
        rng,
        "wood" if rng.random() < 0.6 else "paint",
        ("plain", "grain", "planks"),
        cell=0.2 * size,
        contrast=0.3,
    )
    rise = rng.uniform(-0.05, 0.05)
    count = max(4, int(w / (size * rng.uniform(0.24, 0.34))))
    centres = np.linspace(-w / 2, w / 2, count)
    half = 0.34 * w / count
    pickets = []
    for centre in centres:
        cx, base = x + centre, y + rise * centre
        pickets.append(
            polygon(
                (cx - half, base),
                (cx - half, base - 0.85 * size),
                (cx, base - size),
                (cx + half, base - 0.85 * size),
                (cx + half, base),
            )
        )
    rails = [
        polygon(
            (x - w / 2, y - rise * w / 2 - a * size),
            (x + w / 2, y + rise * w / 2 - a * size),
            (x + w / 2, y + rise * w / 2 - (a - 0.12) * size),
            (x - w / 2, y - rise * w / 2 - (a - 0.12) * size),
        )
        for a in (0.36, 0.76)
    ]
    canvas.darken(rectangle(x - w / 2, y - 0.06 * size, x + w / 2, y + 0.06 * size), 0.3)
    canvas.fill([*rails, *pickets], wood, label, haze)


def tent(canvas: Canvas, rng: Rng, x: float, y: float, size: float, haze: float) -> None:
    """A ridge tent seen from the front corner, ``size`` high."""
    label, w = CLASSES["tent"], size * rng.uniform(1.1, 1.5)
    flip = choose(rng, ("left", "right"))
    s = 1 if flip == "right" else -1
    cast_shadow(canvas, x, y, 1.3 * w, 0.6 * size)
    cloth = surface(
        rng,
        "paint",
        ("stripes", "plain", "folds"),
        cell=0.2 * size,
        contrast=0.2,
        gradient=shade_of(canvas),
    )
    peak, far = x - s * 0.2 * w, x + s * 0.62 * w
    canvas.fill(
        polygon(
            (peak, y - size),
            (far - s * 0.1 * w, y - 0.88 * size),
            (far + s * 0.15 * w, y - 0.08 * size),
            (x + s * 0.25 * w, y),
        ),
        shaded(cloth, 0.75),
        label,
        haze,
    )
    canvas.fill(polygon((x - s * 0.65 * w, y), (peak, y - size), (x + s * 0.25 * w, y)), cloth, label, haze)
    canvas.fill(
        polygon((peak - s * 0.14 * w, y), (peak, y - 0.75 * size), (peak + s * 0.1 * w, y)),
        shaded(cloth, 0.3),
        label,
        haze,
    )
