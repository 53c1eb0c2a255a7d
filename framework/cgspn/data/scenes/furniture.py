"""Things indoors, standing on the floor: their base is at ``x``, ``y`` and they are ``size`` high."""

from __future__ import annotations

import numpy as np

from cgspn.data.scenes.canvas import Canvas, Paint
from cgspn.data.scenes.classes import CLASSES
from cgspn.data.scenes.materials import even, shaded, surface
from cgspn.data.scenes.palette import color
from cgspn.data.scenes.shapes import ellipse, polygon, rectangle
from cgspn.data.scenes.solids import cast_shadow, shade_of

Rng = np.random.Generator


def _cloth(canvas: Canvas, rng: Rng, size: float, textures: tuple[str, ...]) -> Paint:
    return surface(rng, "paint", textures, cell=0.18 * size, contrast=0.3, gradient=shade_of(canvas))


def _wood(canvas: Canvas, rng: Rng, size: float) -> Paint:
    palette = "wood" if rng.random() < 0.6 else "paint"
    return surface(
        rng, palette, ("planks", "plain", "grain"), cell=0.2 * size, contrast=0.3, gradient=shade_of(canvas)
    )


def sofa(canvas: Canvas, rng: Rng, x: float, y: float, size: float, haze: float) -> None:
    """A sofa from the front: a back, two arms, a seat with cushions."""
    label, w = CLASSES["sofa"], size * rng.uniform(1.9, 2.6)
    cast_shadow(canvas, x, y, 1.05 * w, 0.3 * size)
    cloth = _cloth(canvas, rng, size, ("plain", "folds", "grain"))
    canvas.fill(
        rectangle(x - 0.46 * w, y - size, x + 0.46 * w, y - 0.2 * size), shaded(cloth, 0.85), label, haze
    )
    seat = y - 0.5 * size
    canvas.fill(
        polygon(
            (x - 0.4 * w, seat),
            (x + 0.4 * w, seat),
            (x + 0.43 * w, seat + 0.2 * size),
            (x - 0.43 * w, seat + 0.2 * size),
        ),
        shaded(cloth, 1.2),
        label,
        haze,
    )
    canvas.fill(rectangle(x - 0.43 * w, seat + 0.2 * size, x + 0.43 * w, y - 0.05 * size), cloth, label, haze)
    arms = [
        rectangle(x + s * 0.44 * w - 0.07 * w, y - 0.72 * size, x + s * 0.44 * w + 0.07 * w, y)
        for s in (-1, 1)
    ]
    canvas.fill(arms, cloth, label, haze)
    seams = [rectangle(x - 0.006 * w, y - 0.95 * size, x + 0.006 * w, y - 0.2 * size)]
    canvas.fill(seams, shaded(cloth, 0.5), label, haze)


def bed(canvas: Canvas, rng: Rng, x: float, y: float, size: float, haze: float) -> None:
    """A bed seen from its foot or its side: headboard, mattress, blanket and pillows."""
    label = CLASSES["bed"]
    frame, sheet, blanket = (
        _wood(canvas, rng, size),
        even(color(rng, "paint"), 1.2),
        _cloth(canvas, rng, size, ("tiles", "stripes", "plain")),
    )
    if rng.random() < 0.5:
        w = size * rng.uniform(1.4, 1.9)
        narrow, head, foot = 0.4 * w, y - 0.62 * size, y - 0.3 * size
        cast_shadow(canvas, x, y, 1.05 * w, 0.2 * size)
        canvas.fill(rectangle(x - narrow, y - size, x + narrow, head + 0.1 * size), frame, label, haze)
        canvas.fill(
            polygon((x - narrow, head), (x + narrow, head), (x + w / 2, foot), (x - w / 2, foot)),
            shaded(blanket, 1.15),
            label,
            haze,
        )
        canvas.fill(
            polygon(
                (x - narrow, head),
                (x + narrow, head),
                (x + 0.43 * w, head + 0.1 * size),
                (x - 0.43 * w, head + 0.1 * size),
            ),
            sheet,
            label,
            haze,
        )
        canvas.fill(
            [ellipse(x + s * 0.19 * w, head - 0.01 * size, 0.16 * w, 0.08 * size, 12) for s in (-1, 1)],
            shaded(sheet, 1.1),
            label,
            haze,
        )
        canvas.fill(
            rectangle(x - w / 2, foot, x + w / 2, y - 0.06 * size), shaded(blanket, 0.85), label, haze
        )
        canvas.fill(rectangle(x - w / 2, y - 0.08 * size, x + w / 2, y), shaded(frame, 0.7), label, haze)
        return
    w, s = size * rng.uniform(1.9, 2.5), 1 if rng.random() < 0.5 else -1
    cast_shadow(canvas, x, y, 1.02 * w, 0.2 * size)
    top = y - 0.52 * size
    canvas.fill(
        polygon(
            (x - 0.5 * w, top),
            (x - 0.44 * w, top - 0.2 * size),
            (x + 0.44 * w, top - 0.2 * size),
            (x + 0.5 * w, top),
        ),
        shaded(blanket, 1.15),
        label,
        haze,
    )
    canvas.fill(rectangle(x - 0.5 * w, top, x + 0.5 * w, y - 0.12 * size), blanket, label, haze)
    inner, outer = sorted((x + s * 0.24 * w, x + s * 0.5 * w))
    canvas.fill(rectangle(inner, top - 0.12 * size, outer, top + 0.12 * size), sheet, label, haze)
    canvas.fill(
        ellipse(x + s * 0.36 * w, top - 0.16 * size, 0.11 * w, 0.11 * size, 12),
        shaded(sheet, 1.1),
        label,
        haze,
    )
    inner, outer = sorted((x + s * 0.47 * w, x + s * 0.53 * w))
    canvas.fill(
        [
            rectangle(inner, y - size, outer, y),
            rectangle(x - 0.5 * w, y - 0.16 * size, x + 0.5 * w, y - 0.06 * size),
        ],
        frame,
        label,
        haze,
    )


def chair(canvas: Canvas, rng: Rng, x: float, y: float, size: float, haze: float) -> None:
    """A chair turned to one side: a back, a seat and four legs."""
    label, w = CLASSES["chair"], size * rng.uniform(0.55, 0.7)
    s = 1 if rng.random() < 0.5 else -1
    wood, cloth = _wood(canvas, rng, size), _cloth(canvas, rng, size, ("plain", "stripes"))
    cast_shadow(canvas, x, y, w, 0.4 * size)
    seat = y - 0.46 * size
    posts = [
        rectangle(x + a * w - 0.05 * w, seat, x + a * w + 0.05 * w, y - b * size)
        for a, b in ((-0.45, 0.0), (0.45, 0.0), (-0.25, 0.1), (0.3, 0.1))
    ]
    canvas.fill(posts, shaded(wood, 0.8), label, haze)
    left, right = (
        sorted((x - s * 0.52 * w, x - s * 0.3 * w)) if rng.random() < 0.5 else (x - 0.42 * w, x + 0.42 * w)
    )
    canvas.fill(rectangle(left, y - size, right, seat), cloth, label, haze)
    canvas.fill(
        polygon(
            (x - 0.5 * w, seat + 0.05 * size),
            (x - 0.36 * w, seat - 0.08 * size),
            (x + 0.36 * w, seat - 0.08 * size),
            (x + 0.5 * w, seat + 0.05 * size),
        ),
        shaded(cloth, 1.15),
        label,
        haze,
    )
    canvas.fill(
        rectangle(x - 0.5 * w, seat + 0.05 * size, x + 0.5 * w, seat + 0.12 * size), wood, label, haze
    )
