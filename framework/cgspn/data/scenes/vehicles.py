"""Things that move: cars, buses, trucks, boats. A car and a boat share cabin, body and paint."""

from __future__ import annotations

import itertools

import numpy as np

from cgspn.data.scenes.canvas import Canvas, Paint
from cgspn.data.scenes.classes import CLASSES
from cgspn.data.scenes.materials import even, surface
from cgspn.data.scenes.palette import color
from cgspn.data.scenes.shapes import ellipse, polygon, rectangle
from cgspn.data.scenes.solids import cast_shadow, shade_of

Rng = np.random.Generator


def _wheels(canvas: Canvas, label: int, positions: list[float], y: float, radius: float, haze: float) -> None:
    canvas.fill(
        [ellipse(x, y - radius, radius, radius) for x in positions],
        even(np.full(3, 0.09, np.float32)),
        label,
        haze,
    )
    hubs = [ellipse(x, y - radius, 0.5 * radius, 0.5 * radius, 10) for x in positions]
    canvas.fill(hubs, even(np.full(3, 0.55, np.float32)), label, haze)


def _glass(rng: Rng) -> Paint:
    base = color(rng, "sky") * np.float32(rng.uniform(0.25, 0.9))
    return Paint(base, gradient=(float(rng.uniform(-0.5, 0.5)), -0.5))


def _body(
    canvas: Canvas, rng: Rng, label: int, x: float, base: float, w: float, h: float, flip: int, haze: float
) -> None:
    """Body and cabin that cars and boats have in common; ``base`` is the lower edge of the body."""
    paint = surface(
        rng, "paint", ("plain", "stripes", "grain"), cell=0.5 * h, contrast=0.15, gradient=shade_of(canvas)
    )
    shoulder = base - rng.uniform(0.42, 0.58) * h
    slope = rng.uniform(0.03, 0.12)
    cabin_left, cabin_right = rng.uniform(-0.34, -0.2), rng.uniform(0.12, 0.3)

    def place(points: list[tuple[float, float]]) -> np.ndarray:
        return np.array([(x + flip * px * w, py) for px, py in points])

    canvas.fill(
        place(
            [
                (cabin_left - slope, shoulder + 0.06 * h),
                (cabin_left, base - h),
                (cabin_right - slope, base - h),
                (cabin_right + slope, shoulder + 0.06 * h),
            ]
        ),
        paint,
        label,
        haze,
    )
    nose = rng.uniform(0.0, 0.12) * h
    hull = [
        (-0.49, shoulder + 0.02 * h),
        (0.4, shoulder),
        (0.5, shoulder + nose),
        (0.47, base),
        (-0.46, base),
    ]
    canvas.fill(place(hull), paint, label, haze)
    roof, sill = base - 0.93 * h, shoulder - 0.02 * h
    middle = 0.5 * (cabin_left + cabin_right)
    canvas.fill(
        [
            place(
                [
                    (cabin_left + 0.0, sill),
                    (cabin_left + 0.03, roof),
                    (middle - 0.015, roof),
                    (middle - 0.015, sill),
                ]
            ),
            place(
                [
                    (middle + 0.015, sill),
                    (middle + 0.015, roof),
                    (cabin_right - slope - 0.02, roof),
                    (cabin_right + 0.2 * slope, sill),
                ]
            ),
        ],
        _glass(rng),
        label,
        haze,
    )
    lamp = place(
        [
            (0.46, shoulder + nose + 0.04 * h),
            (0.5, shoulder + nose + 0.04 * h),
            (0.49, shoulder + nose + 0.16 * h),
            (0.46, shoulder + nose + 0.16 * h),
        ]
    )
    canvas.fill(lamp, even(color(rng, "paint"), 1.3), label, haze)


def car(canvas: Canvas, rng: Rng, x: float, y: float, size: float, haze: float) -> None:
    """A car on wheels, ``size`` high."""
    w, label = size * rng.uniform(1.9, 2.5), CLASSES["car"]
    flip = 1 if rng.random() < 0.5 else -1
    cast_shadow(canvas, x, y, w, 0.5 * size)
    _body(canvas, rng, label, x, y - 0.15 * size, w, 0.85 * size, flip, haze)
    _wheels(canvas, label, [x - 0.3 * w, x + 0.3 * w], y, 0.17 * size, haze)


def boat(canvas: Canvas, rng: Rng, x: float, y: float, size: float, haze: float) -> None:
    """A boat in the water, sometimes with a mast and a sail, ``size`` high."""
    label = CLASSES["boat"]
    flip = 1 if rng.random() < 0.5 else -1
    sail = rng.random() < 0.35
    h = size * (0.45 if sail else 0.85)
    w = h * rng.uniform(1.9, 2.5)
    canvas.darken(
        polygon(
            (x - 0.45 * w, y), (x + 0.45 * w, y), (x + 0.3 * w, y + 0.5 * h), (x - 0.35 * w, y + 0.5 * h)
        ),
        0.35,
    )
    if sail:
        mast = x + flip * 0.05 * w
        canvas.fill(
            rectangle(mast - 0.02 * size, y - size, mast + 0.02 * size, y - 0.3 * h),
            even(color(rng, "wood")),
            label,
            haze,
        )
        cloth = surface(
            rng,
            "paint",
            ("plain", "stripes", "folds"),
            cell=0.15 * size,
            contrast=0.2,
            gradient=shade_of(canvas),
        )
        canvas.fill(
            [
                polygon(
                    (mast + flip * 0.03 * size, y - size),
                    (mast + flip * 0.45 * w, y - 0.7 * h),
                    (mast + flip * 0.03 * size, y - 0.7 * h),
                ),
                polygon(
                    (mast - flip * 0.03 * size, y - 0.9 * size),
                    (mast - flip * 0.38 * w, y - 0.7 * h),
                    (mast - flip * 0.03 * size, y - 0.7 * h),
                ),
            ],
            cloth,
            label,
            haze,
        )
    _body(canvas, rng, label, x, y, w, h, flip, haze)
    keel = surface(rng, "paint", gradient=shade_of(canvas))
    canvas.fill(
        polygon(
            (x - 0.52 * w, y - 0.25 * h),
            (x + 0.52 * w, y - 0.25 * h),
            (x + 0.4 * w, y + 0.06 * h),
            (x - 0.4 * w, y + 0.06 * h),
        ),
        keel,
        label,
        haze,
    )


def bus(canvas: Canvas, rng: Rng, x: float, y: float, size: float, haze: float) -> None:
    """A bus: one long box with a row of windows, ``size`` high."""
    w, label = size * rng.uniform(1.9, 2.6), CLASSES["bus"]
    top, bottom = y - size, y - 0.1 * size
    cast_shadow(canvas, x, y, w, 0.6 * size)
    paint = surface(rng, "paint", ("plain", "stripes"), cell=size, contrast=0.15, gradient=shade_of(canvas))
    canvas.fill(rectangle(x - w / 2, top, x + w / 2, bottom), paint, label, haze)
    stripe = y - rng.uniform(0.25, 0.4) * size
    canvas.fill(
        rectangle(x - w / 2, stripe, x + w / 2, stripe + 0.08 * size), even(color(rng, "paint")), label, haze
    )
    count = int(rng.integers(4, 7))
    edges = np.linspace(x - 0.47 * w, x + 0.47 * w, count + 1)
    gap = 0.1 * (edges[1] - edges[0])
    panes = [
        rectangle(a + gap, top + 0.12 * size, b - gap, top + 0.48 * size)
        for a, b in itertools.pairwise(edges)
    ]
    canvas.fill(panes, _glass(rng), label, haze)
    _wheels(canvas, label, [x - 0.3 * w, x + 0.3 * w], y, 0.13 * size, haze)
