"""Things on the walls of a room: windows, paintings, curtains, doors; each fills a rectangle."""

from __future__ import annotations

import numpy as np

from cgspn.data.scenes.canvas import Canvas, Paint
from cgspn.data.scenes.classes import CLASSES
from cgspn.data.scenes.materials import even, shaded, surface
from cgspn.data.scenes.palette import color
from cgspn.data.scenes.shapes import ellipse, hill, rectangle, stroke
from cgspn.data.scenes.solids import shade_of

Rng = np.random.Generator


def _frame(
    canvas: Canvas, rng: Rng, label: int, left: float, top: float, right: float, bottom: float, width: float
) -> None:
    wood = surface(rng, "paint", ("plain", "grain", "planks"), cell=0.05, contrast=0.25)
    canvas.darken(rectangle(left, top, right + 0.5 * width, bottom + width), 0.25)
    canvas.fill(rectangle(left, top, right, bottom), wood, label)


def _view(canvas: Canvas, rng: Rng, label: int, left: float, top: float, right: float, bottom: float) -> None:
    """A small landscape, as it is seen through a window or painted on a canvas."""
    h = bottom - top
    sky = Paint(color(rng, "sky"), gradient=(0, float(rng.uniform(-0.3, 0.3))))
    canvas.fill(rectangle(left, top, right, bottom), sky, label)
    horizon = top + rng.uniform(0.35, 0.8) * h
    ground = surface(rng, "grass", ("plain", "rough", "leaves", "waves"), cell=0.2 * h, contrast=0.4)
    land = hill(rng, left, right, horizon, 0.3 * h)
    land[:, 1] = np.maximum(land[:, 1], top)
    land[-2:, 1] = bottom
    canvas.fill(land, ground, label)
    if rng.random() < 0.5:
        cx, r = rng.uniform(left + 0.2 * (right - left), right - 0.2 * (right - left)), 0.13 * h
        spot = ellipse(cx, top + rng.uniform(0.3, 0.7) * h, min(r, cx - left, right - cx), r)
        canvas.fill(spot, surface(rng, "paint", ("plain", "leaves"), cell=r), label)


def window(canvas: Canvas, rng: Rng, left: float, top: float, right: float, bottom: float) -> None:
    """A window: a thin frame, a view and glazing bars that cross it."""
    label, w, h = CLASSES["windowpane"], right - left, bottom - top
    edge = 0.05 * min(w, h)
    _frame(canvas, rng, label, left, top, right, bottom, edge)
    _view(canvas, rng, label, left + edge, top + edge, right - edge, bottom - edge)
    bar = even(color(rng, "paint"))
    columns, lines = int(rng.integers(2, 4)), int(rng.integers(2, 4))
    half = 0.022 * min(w, h) + 0.004
    bars = [
        rectangle(left + k * w / columns - half, top, left + k * w / columns + half, bottom)
        for k in range(1, columns)
    ]
    bars += [
        rectangle(left, top + k * h / lines - half, right, top + k * h / lines + half)
        for k in range(1, lines)
    ]
    canvas.fill(bars, bar, label)


def painting(canvas: Canvas, rng: Rng, left: float, top: float, right: float, bottom: float) -> None:
    """A painting: a heavy frame around a landscape or an abstract."""
    label, edge = CLASSES["painting"], rng.uniform(0.07, 0.14) * min(right - left, bottom - top)
    _frame(canvas, rng, label, left, top, right, bottom, edge)
    left, top, right, bottom = left + edge, top + edge, right - edge, bottom - edge
    if rng.random() < 0.6:
        _view(canvas, rng, label, left, top, right, bottom)
        return
    canvas.fill(
        rectangle(left, top, right, bottom), surface(rng, "paint", ("rough", "plain"), cell=0.1), label
    )
    for _ in range(int(rng.integers(2, 5))):
        x, y = rng.uniform(left, right), rng.uniform(top, bottom)
        r = rng.uniform(0.1, 0.3) * (bottom - top)
        spot = ellipse(x, y, r, r * rng.uniform(0.5, 1.5), 16)
        spot = np.clip(spot, (left, top), (right, bottom))
        canvas.fill(spot, surface(rng, "paint", ("plain", "rough", "stripes"), cell=r), label)


def curtain(canvas: Canvas, rng: Rng, left: float, top: float, right: float, bottom: float) -> None:
    """A curtain: folds of cloth under a rod."""
    label, w = CLASSES["curtain"], right - left
    cloth = surface(
        rng, "paint", ("folds",), cell=w / rng.uniform(3.5, 6), contrast=0.45, gradient=shade_of(canvas)
    )
    x = np.linspace(left, right, 17)
    hem = bottom + 0.012 * np.sin(np.linspace(0, 8 * np.pi, 17))
    canvas.fill(np.concatenate([[(left, top), (right, top)], np.stack([x, hem], 1)[::-1]]), cloth, label)
    rod = np.array([(left - 0.08 * w, top), (right + 0.08 * w, top)])
    canvas.fill(stroke(rod, 0.02, 0.02), even(color(rng, "wood"), 0.7), label)


def door(canvas: Canvas, rng: Rng, left: float, top: float, right: float, bottom: float) -> None:
    """A door with panels and a knob, down to the floor."""
    label, w, h = CLASSES["door"], right - left, bottom - top
    wood = surface(
        rng, "paint", ("plain", "planks", "grain"), cell=0.08, contrast=0.25, gradient=shade_of(canvas)
    )
    canvas.fill(
        rectangle(left - 0.07 * w, top - 0.05 * h, right + 0.07 * w, bottom), even(color(rng, "paint")), label
    )
    canvas.fill(rectangle(left, top, right, bottom), wood, label)
    columns, lines = int(rng.integers(1, 3)), int(rng.integers(2, 4))
    panels = []
    for i in range(columns):
        for j in range(lines):
            x, y = left + (i + 0.14) * w / columns, top + (j + 0.12) * h / lines
            panels.append(rectangle(x, y, x + 0.72 * w / columns, y + 0.76 * h / lines))
    canvas.fill(panels, shaded(wood, rng.uniform(0.65, 0.85)), label)
    knob = left + 0.1 * w if rng.random() < 0.5 else right - 0.1 * w
    canvas.fill(ellipse(knob, top + 0.52 * h, 0.05 * w, 0.05 * w, 10), even(color(rng, "paint")), label)
