"""Solid bodies: boxes with a top and a side, and the shadows that things cast on the ground."""

from __future__ import annotations

import numpy as np

from cgspn.data.scenes.canvas import Canvas, Paint
from cgspn.data.scenes.materials import shaded
from cgspn.data.scenes.shapes import ellipse, polygon, rectangle


def shade_of(canvas: Canvas) -> tuple[float, float]:
    """Gradient of brightness over a body under the scene's light."""
    light = canvas.light
    return (0.9 * light.contrast * light.side, -0.6 * light.contrast)


def cast_shadow(canvas: Canvas, x: float, y: float, width: float, height: float) -> None:
    """Casts the shadow of a thing that stands on the ground at ``x``, ``y``."""
    light = canvas.light
    reach = -light.side * height * (1.2 - light.height) * 0.7
    flat = 0.07 * width + 0.03 * height
    middle = polygon(
        (x - width / 2, y),
        (x + width / 2, y),
        (x + width / 2 + reach, y - flat),
        (x - width / 2 + reach, y - flat),
    )
    canvas.darken([ellipse(x, y, 0.55 * width, flat), middle], 0.35 + 0.5 * light.contrast)


def box(
    canvas: Canvas,
    paint: Paint,
    label: int,
    left: float,
    top: float,
    right: float,
    bottom: float,
    *,
    side: float = 0.0,
    lid: float = 0.0,
    haze: float = 0.0,
) -> None:
    """Draws a box by its front face, with a side face ``side`` wide and a top face ``lid`` high.

    The side face lies to the right of the front where ``side`` is positive, else to the left.
    """
    lit = 1 + 0.6 * canvas.light.contrast * np.sign(side) * canvas.light.side
    edge = right if side > 0 else left
    if side:
        face = polygon((edge, top), (edge + side, top - lid), (edge + side, bottom - lid), (edge, bottom))
        canvas.fill(face, shaded(paint, 0.72 * lit), label, haze)
    if lid:
        face = polygon((left, top), (right, top), (right + side, top - lid), (left + side, top - lid))
        canvas.fill(face, shaded(paint, 1.0 + 0.5 * canvas.light.contrast), label, haze)
    canvas.fill(rectangle(left, top, right, bottom), paint, label, haze)
