"""Trees, palms, plants, rocks, people. A tree and a palm share trunk and foliage and differ in shape."""

from __future__ import annotations

import numpy as np

from cgspn.data.scenes.canvas import Canvas, Paint
from cgspn.data.scenes.classes import CLASSES
from cgspn.data.scenes.materials import even, surface
from cgspn.data.scenes.palette import color
from cgspn.data.scenes.shapes import blob, ellipse, polygon, stroke
from cgspn.data.scenes.solids import cast_shadow, shade_of

Rng = np.random.Generator


def _foliage(canvas: Canvas, rng: Rng, cell: float) -> Paint:
    return surface(
        rng, "foliage", ("leaves", "leaves", "grain"), cell=cell, contrast=0.9, gradient=shade_of(canvas)
    )


def _trunk(
    canvas: Canvas, rng: Rng, label: int, x: float, y: float, top: float, bend: float, w: float, haze: float
) -> None:
    t = np.linspace(0, 1, 7)
    line = np.stack([x + bend * t**1.7, y + (top - y) * t], 1)
    bark = surface(
        rng,
        "wood",
        ("rough", "planks", "grain"),
        cell=0.6 * w,
        contrast=0.4,
        gradient=(shade_of(canvas)[0] * 1.5, 0),
    )
    canvas.fill(stroke(line, 1.3 * w, 0.7 * w), bark, label, haze)


def tree(canvas: Canvas, rng: Rng, x: float, y: float, size: float, haze: float) -> None:
    """A tree with a round, spreading or pointed crown, ``size`` high."""
    label = CLASSES["tree"]
    bend = rng.normal(0, 0.04) * size
    cast_shadow(canvas, x, y, 0.4 * size, size)
    pointed = rng.random() < 0.3
    leaf = _foliage(canvas, rng, 0.11 * size)
    if pointed:
        _trunk(canvas, rng, label, x, y, y - 0.4 * size, 0, 0.06 * size, haze)
        layers = []
        for k in range(4):
            base, half = y - (0.14 + 0.19 * k) * size, (0.27 - 0.05 * k) * size * rng.uniform(0.9, 1.1)
            layers.append(polygon((x - half, base), (x, base - 0.36 * size), (x + half, base)))
        canvas.fill(layers, leaf, label, haze)
        return
    crown = rng.uniform(0.55, 0.75) * size
    _trunk(canvas, rng, label, x, y, y - 0.6 * size, bend, rng.uniform(0.06, 0.11) * size, haze)
    rx, ry = rng.uniform(0.28, 0.42) * size, 0.5 * crown
    cx, cy = x + bend, y - size + ry
    lobes = [blob(rng, cx, cy, 0.8 * rx, 0.85 * ry, 0.12)]
    for _ in range(5):
        angle = rng.uniform(0, 2 * np.pi)
        lobes.append(
            blob(
                rng,
                cx + 0.5 * rx * np.cos(angle),
                cy + 0.5 * ry * np.sin(angle),
                0.5 * rx,
                0.5 * ry,
                0.15,
                16,
            )
        )
    canvas.fill(lobes, leaf, label, haze)


def palm(canvas: Canvas, rng: Rng, x: float, y: float, size: float, haze: float) -> None:
    """A palm: a long bent trunk under a star of drooping leaves, ``size`` high."""
    label = CLASSES["palm"]
    bend = rng.uniform(-0.28, 0.28) * size
    cast_shadow(canvas, x, y, 0.2 * size, size)
    _trunk(canvas, rng, label, x, y, y - 0.78 * size, bend, rng.uniform(0.06, 0.09) * size, haze)
    cx, cy, reach = x + bend, y - 0.78 * size, rng.uniform(0.36, 0.5) * size
    t = np.linspace(0, 1, 8)
    fronds = []
    count = int(rng.integers(8, 12))
    for k in range(count):
        angle = np.pi * (-0.12 + 1.24 * (k + rng.uniform(0.2, 0.8)) / count)
        length = reach * rng.uniform(0.85, 1.15)
        line = np.stack(
            [cx + length * np.cos(angle) * t, cy - length * (0.75 * np.sin(angle) * t - 0.55 * t**2)], 1
        )
        outline = stroke(line, 0.0, 0.0)
        width = 0.17 * reach * np.sin(np.pi * np.clip(0.08 + 0.92 * t, 0, 1))
        outline[: len(t), 1] -= width
        outline[len(t) :, 1] += width[::-1]
        fronds.append(outline)
    canvas.fill(fronds, _foliage(canvas, rng, 0.09 * size), label, haze)


def plant(canvas: Canvas, rng: Rng, x: float, y: float, size: float, haze: float) -> None:
    """A plant in a pot, ``size`` high; the pot belongs to it."""
    label = CLASSES["plant"]
    w = rng.uniform(0.2, 0.3) * size
    cast_shadow(canvas, x, y, 2 * w, 0.5 * size)
    pot = surface(
        rng, "paint", ("plain", "stripes", "tiles"), cell=0.1 * size, contrast=0.2, gradient=shade_of(canvas)
    )
    leaf = _foliage(canvas, rng, 0.1 * size)
    t = np.linspace(0, 1, 6)
    leaves = [blob(rng, x, y - 0.6 * size, 0.22 * size, 0.22 * size, 0.2)]
    for angle in np.linspace(0.1, 0.9, int(rng.integers(5, 9))) * np.pi:
        angle += rng.normal(0, 0.1)
        length = rng.uniform(0.45, 0.62) * size
        line = np.stack(
            [
                x + 0.8 * length * np.cos(angle) * t,
                y - 0.38 * size - length * np.sin(angle) * t * (1.25 - 0.25 * t),
            ],
            1,
        )
        outline = stroke(line, 0.0, 0.0)
        normal = np.array([np.sin(angle), np.cos(angle)]) * 0.06 * size
        bulge = np.sin(np.pi * t)[:, None] * normal
        outline[: len(t)] += bulge
        outline[len(t) :] -= bulge[::-1]
        leaves.append(outline)
    canvas.fill(leaves, leaf, label, haze)
    canvas.fill(
        polygon((x - w, y - 0.4 * size), (x + w, y - 0.4 * size), (x + 0.7 * w, y), (x - 0.7 * w, y)),
        pot,
        label,
        haze,
    )


def rock(canvas: Canvas, rng: Rng, x: float, y: float, size: float, haze: float) -> None:
    """A boulder, ``size`` high, sometimes with a smaller one beside it."""
    label = CLASSES["rock"]
    w = size * rng.uniform(0.6, 0.95)
    cast_shadow(canvas, x, y, 1.9 * w, 0.6 * size)
    stone = surface(
        rng, "stone", ("ridges", "ridges", "rough"), cell=0.35 * size, contrast=0.5, gradient=shade_of(canvas)
    )
    shape = blob(rng, x, y - 0.45 * size, w, 0.55 * size, 0.12, 14)
    shape[:, 1] = np.minimum(shape[:, 1], y)
    shapes = [shape]
    if rng.random() < 0.5:
        small = blob(rng, x + rng.choice([-1, 1]) * w, y - 0.2 * size, 0.45 * w, 0.28 * size, 0.12, 12)
        small[:, 1] = np.minimum(small[:, 1], y + 0.02 * size)
        shapes.append(small)
    canvas.fill(shapes, stone, label, haze)


def person(canvas: Canvas, rng: Rng, x: float, y: float, size: float, haze: float) -> None:
    """A person standing or walking, ``size`` high."""
    label = CLASSES["person"]
    cast_shadow(canvas, x, y, 0.3 * size, size)
    coat = surface(
        rng, "paint", ("plain", "stripes", "grain"), cell=0.1 * size, contrast=0.25, gradient=shade_of(canvas)
    )
    stride = rng.uniform(0.02, 0.14) * size
    hip, neck = y - 0.47 * size, y - 0.83 * size
    trousers = even(color(rng, "paint"), 0.8)
    legs = [
        polygon(
            (x - 0.09 * size, hip),
            (x + 0.02 * size, hip),
            (x - stride + 0.04 * size, y),
            (x - stride - 0.06 * size, y),
        ),
        polygon(
            (x - 0.02 * size, hip),
            (x + 0.09 * size, hip),
            (x + stride + 0.06 * size, y),
            (x + stride - 0.04 * size, y),
        ),
    ]
    if rng.random() < 0.3:
        legs = [
            polygon(
                (x - 0.08 * size, hip),
                (x + 0.08 * size, hip),
                (x + 0.17 * size, y - 0.12 * size),
                (x - 0.17 * size, y - 0.12 * size),
            ),
            *legs,
        ]
    canvas.fill(legs, trousers, label, haze)
    swing = rng.uniform(0.02, 0.12) * size
    arms = [
        polygon(
            (x + s * 0.1 * size, neck),
            (x + s * 0.15 * size, neck + 0.04 * size),
            (x + s * (0.15 * size + swing), hip + 0.02 * size),
            (x + s * (0.09 * size + swing), hip + 0.02 * size),
        )
        for s in (-1, 1)
    ]
    body = polygon(
        (x - 0.13 * size, neck),
        (x + 0.13 * size, neck),
        (x + 0.1 * size, hip + 0.02 * size),
        (x - 0.1 * size, hip + 0.02 * size),
    )
    canvas.fill([*arms, body], coat, label, haze)
    skin = even(color(rng, "skin"))
    canvas.fill(ellipse(x, y - 0.91 * size, 0.07 * size, 0.09 * size), skin, label, haze)
    hair = even(color(rng, "wood"), 0.7)
    canvas.fill(ellipse(x, y - 0.955 * size, 0.075 * size, 0.055 * size), hair, label, haze)
