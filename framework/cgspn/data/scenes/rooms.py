"""Scenes indoors: a room in perspective, with things on its walls and on its floor."""

from __future__ import annotations

import numpy as np

from cgspn.data.scenes import fittings
from cgspn.data.scenes.canvas import Canvas
from cgspn.data.scenes.classes import CLASSES
from cgspn.data.scenes.materials import choose, even, surface
from cgspn.data.scenes.palette import color, light
from cgspn.data.scenes.placing import KINDS, Ground, Thing
from cgspn.data.scenes.shapes import rectangle
from cgspn.data.scenes.structures import MASONRY
from cgspn.data.scenes.textures import Texture, on_ground, on_side

Rng = np.random.Generator
FAR = 6.0


def _shell(
    canvas: Canvas, rng: Rng, left: float, top: float, right: float, bottom: float, vx: float, vy: float
) -> None:
    """Draws floor, ceiling and walls around the back wall; (vx, vy) is the vanishing point."""

    def ray(x: float, y: float) -> tuple[float, float]:
        return vx + FAR * (x - vx), vy + FAR * (y - vy)

    corners = {
        name: (x, y)
        for name, x, y in (("lt", left, top), ("rt", right, top), ("rb", right, bottom), ("lb", left, bottom))
    }
    side_shade = 0.6 * canvas.light.contrast * canvas.light.side

    def flat(texture: Texture) -> Texture:
        return on_ground(texture, vy, vx)

    def upright(texture: Texture) -> Texture:
        return on_side(texture, vy, vx)

    floor = surface(
        rng,
        "wood" if rng.random() < 0.5 else "masonry",
        ("planks", "planks", "tiles", "tiles", "plain"),
        cell=0.35,
        contrast=0.4,
        project=flat,
    )
    ceiling = surface(
        rng, "masonry", ("plain", "plain", "tiles", "planks"), cell=0.5, contrast=0.25, project=flat
    )
    wall = surface(rng, "masonry", MASONRY, cell=0.07, contrast=0.3, gradient=(side_shade, 0.1))
    for a, b, paint, label in (("lb", "rb", floor, "floor"), ("lt", "rt", ceiling, "ceiling")):
        canvas.fill(
            np.array([corners[a], corners[b], ray(*corners[b]), ray(*corners[a])]), paint, CLASSES[label]
        )
    for a, b, s in (("lt", "lb", -1), ("rt", "rb", 1)):
        tone = 1 + 0.7 * canvas.light.contrast * canvas.light.side * s
        side = surface(
            rng, "masonry", ("plain", "stripes", "planks", "plain"), cell=0.3, contrast=0.2, project=upright
        )
        side = type(side)(np.clip(wall.color * np.float32(tone * 0.85), 0, 1), side.texture, side.contrast)
        canvas.fill(
            np.array([corners[a], corners[b], ray(*corners[b]), ray(*corners[a])]), side, CLASSES["wall"]
        )
    canvas.fill(rectangle(left, top, right, bottom), wall, CLASSES["wall"])
    h = bottom - top
    if rng.random() < 0.6:
        trim = even(color(rng, "masonry"), 1.1)
        canvas.fill(
            rectangle(left, bottom - rng.uniform(0.02, 0.05) * h, right, bottom), trim, CLASSES["wall"]
        )
    canvas.darken(rectangle(left, bottom, right, bottom + 0.02 * h), 0.3)


def _hang(canvas: Canvas, rng: Rng, left: float, top: float, right: float, bottom: float) -> list[Thing]:
    """Hangs windows, paintings and curtains on the back wall and lets doors into it."""
    things: list[Thing] = []
    h = bottom - top
    x = max(left, -canvas.half_width) + rng.uniform(0.02, 0.25) * h
    stop = min(right, canvas.half_width)
    while x < stop - 0.15 * h and len(things) < 5:
        name = choose(rng, ("window", "painting", "curtain", "door"))
        canvas.instance = len(things) + 1
        if name == "door":
            w, low, high = h * rng.uniform(0.32, 0.42), bottom, bottom - h * rng.uniform(0.68, 0.8)
        elif name == "curtain":
            w, low, high = (
                h * rng.uniform(0.3, 0.6),
                bottom - h * rng.uniform(0.0, 0.3),
                top + h * rng.uniform(0.04, 0.15),
            )
        else:
            w, tall = h * rng.uniform(0.3, 0.65), h * rng.uniform(0.3, 0.55)
            high = top + h * rng.uniform(0.12, 0.25)
            low = high + tall
        if x + w > right - 0.02 * h:
            break
        getattr(fittings, name)(canvas, rng, x, high, x + w, low)
        things.append(Thing("windowpane" if name == "window" else name, x + w / 2, low, low - high, "wall"))
        x += w + rng.uniform(0.06, 0.5) * h
    canvas.instance = 0
    return things


def draw_room(rng: Rng, height: int, width: int) -> tuple[Canvas, list[Thing]]:
    """Draws a room: from the whole of it down to a corner of a wall."""
    tilt = float(rng.normal(0, 0.05))
    canvas = Canvas(height, width, light(rng, np.full(3, 0.5, np.float32)), tilt)
    tall = float(np.exp(rng.uniform(np.log(0.4), np.log(1.1))))
    bottom = float(rng.uniform(-0.12, 0.3))
    top = bottom - tall
    wide = tall * rng.uniform(1.1, 2.4)
    middle = float(rng.uniform(-0.4, 0.4)) * canvas.half_width
    left, right = middle - wide / 2, middle + wide / 2
    vx, vy = middle + float(rng.uniform(-0.25, 0.25)) * wide, bottom - float(rng.uniform(0.4, 0.7)) * tall
    _shell(canvas, rng, left, top, right, bottom, vx, vy)
    fitted = _hang(canvas, rng, left, top, right, bottom)
    # The scale follows from the room: the back wall is `tall` high where the floor begins.
    span = 0.5 - vy
    ground = Ground(vy, 0.9 * tall * span / (bottom - vy), canvas.half_width)
    ground.regions["floor"] = lambda x, y: y > bottom + 0.015
    ground.things = fitted
    kinds = ("sofa", "sofa", "bed", "bed", "chair", "chair", "plant", "plant", "person")
    for _ in range(int(rng.integers(2, 5))):
        name = choose(rng, kinds)
        wall_size = KINDS[name][1] * ground.near * (bottom + 0.02 - vy) / span
        ground.place(rng, name, ("floor",), wall_size, 1.6 * wall_size)
    ground.draw(canvas, rng)
    return canvas, ground.things
