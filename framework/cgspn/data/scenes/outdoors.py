"""Scenes in the open: streets, coasts and countryside."""

from __future__ import annotations

import numpy as np

from cgspn.data.scenes import structures
from cgspn.data.scenes.canvas import Canvas, Paint
from cgspn.data.scenes.classes import CLASSES
from cgspn.data.scenes.materials import choose, even, surface
from cgspn.data.scenes.palette import color, light
from cgspn.data.scenes.placing import Ground, Thing
from cgspn.data.scenes.shapes import blob, hill, polygon, rectangle, ridge
from cgspn.data.scenes.textures import Array, Texture, facade, fractal, on_ground, on_side, placed

Rng = np.random.Generator
FAR = 4.0  # beyond every edge of the picture

TEXTURES_OF = {
    "grass": ("blades", "blades", "blades", "rough"),
    "sand": ("grain", "grain", "grain", "plain"),
    "water": ("waves", "waves", "waves", "plain"),
    "road": ("plain", "plain", "grain"),
}
PALETTE_OF = {"grass": "grass", "sand": "sand", "water": "water", "road": "asphalt"}


# Of each place: backdrops, grounds, things; named more than once where they are more frequent.
PLACES: dict[str, tuple[tuple[str, ...], ...]] = {
    "street": (
        ("building", "building", "skyscraper", "skyscraper", "house", "tree", "mountain"),
        ("grass", "grass", "sand"),
        (
            "car",
            "car",
            "car",
            "bus",
            "bus",
            "person",
            "person",
            "tree",
            "palm",
            "fence",
            "house",
            "skyscraper",
        ),
    ),
    "coast": (
        ("none", "none", "mountain", "skyscraper", "tree", "building"),
        ("water",),
        ("boat", "boat", "boat", "palm", "palm", "person", "tent", "rock", "rock", "tree"),
    ),
    "country": (
        ("none", "mountain", "mountain", "tree", "house"),
        ("grass", "grass", "sand"),
        ("house", "tree", "tree", "palm", "fence", "fence", "rock", "tent", "tent", "person", "car", "boat"),
    ),
}


def _clouds(cover: float) -> Texture:
    def texture(x: Array, y: Array, footprint: Array | float) -> Array:
        return np.clip(2.2 * fractal(0.45 * x, 1.1 * y, footprint) + cover, 0, 1)

    return texture


def _sky(canvas: Canvas, rng: Rng, base: np.ndarray) -> None:
    clouds = placed(
        _clouds(rng.uniform(-0.6, 0.5)), rng.uniform(1.5, 5), (rng.uniform(0, 99), rng.uniform(0, 99))
    )
    white = color(rng, "sky") if rng.random() < 0.3 else np.full(3, rng.uniform(0.6, 1), np.float32)
    canvas.fill(
        rectangle(-FAR, -FAR, FAR, FAR),
        Paint(base, clouds, rng.uniform(0.3, 0.9), bright=white, gradient=(0, float(rng.uniform(-0.4, 0.4)))),
        CLASSES["sky"],
    )


def _backdrop(canvas: Canvas, rng: Rng, kind: str, horizon: float) -> None:
    """Draws what closes the view at the horizon."""
    light_ = canvas.light
    if kind == "mountain":
        for haze in (0.75, 0.35)[int(rng.integers(2)) :]:
            rock = surface(
                rng,
                "stone",
                ("ridges", "ridges", "rough"),
                cell=0.16,
                contrast=0.45,
                gradient=(light_.side * 0.3, 0),
            )
            outline = ridge if rng.random() < 0.65 else hill
            middle = rng.uniform(-0.5, 0.5) * canvas.half_width
            shape = outline(rng, middle - 1.6, middle + 1.6, horizon + 0.01, rng.uniform(0.12, 0.42))
            canvas.fill(shape, rock, CLASSES["mountain"], haze * (0.3 + light_.thickness))
        return
    if kind == "tree":
        leaf = surface(rng, "foliage", ("leaves", "grain", "rough"), cell=0.06, contrast=0.6)
        height, x, crowns = rng.uniform(0.06, 0.2), -canvas.half_width - 0.3, []
        start = x + rng.uniform(0, 0.6)
        x, stop = (start, start + rng.uniform(0.5, 2)) if rng.random() < 0.5 else (x, -x)
        while x < stop:
            r = height * rng.uniform(0.5, 0.8)
            crowns.append(blob(rng, x, horizon - 0.45 * height, r, r, 0.15, 18))
            crowns.append(rectangle(x - 0.7 * r, horizon - 0.4 * height, x + 0.7 * r, horizon + 0.01))
            x += r * rng.uniform(0.8, 1.3)
        canvas.fill(crowns, leaf, CLASSES["tree"], 0.6 * light_.thickness)
        return
    if kind in ("building", "skyscraper", "house"):
        draw = {
            "building": structures.building,
            "skyscraper": structures.skyscraper,
            "house": structures.house,
        }[kind]
        size = {"building": 0.3, "skyscraper": 0.5, "house": 0.2}[kind] * rng.uniform(0.7, 1.5)
        width = {"building": 1.1, "skyscraper": 0.36, "house": 1.4}[kind]
        x = -canvas.half_width - 0.2 + rng.uniform(0, 0.4)
        gap = rng.uniform(0, 0.5) * size
        while x < canvas.half_width + 0.2:
            height = size * rng.uniform(0.65, 1.35)
            draw(canvas, rng, x + width * height / 2, horizon + 0.015, height, 0.5 * light_.thickness)
            x += width * height + gap * rng.uniform(0, 2)


def _land(canvas: Canvas, rng: Rng, kind: str, shape: np.ndarray, horizon: float, vanishing_x: float) -> None:
    def project(texture: Texture) -> Texture:
        return on_ground(texture, horizon, vanishing_x)

    light_ = canvas.light
    paint = surface(
        rng, PALETTE_OF[kind], TEXTURES_OF[kind], cell=float(rng.uniform(0.2, 0.5)), contrast=0.6,
        project=project, gradient=(0.5 * light_.contrast * light_.side, float(rng.uniform(-0.3, 0.3))),
    )  # fmt: skip
    canvas.fill(shape, paint, CLASSES[kind])


def _road(canvas: Canvas, rng: Rng, ground: Ground, vanishing_x: float) -> None:
    """Lays a road to the vanishing point or across the picture."""
    horizon, span = ground.horizon, 0.5 - ground.horizon
    if rng.random() < 0.6:
        middle = rng.uniform(-0.35, 0.35) * ground.half_width
        half = rng.uniform(0.25, 0.6) * max(ground.near, 0.6)

        def strip(left: float, right: float) -> np.ndarray:
            t = FAR / span
            edges = [(vanishing_x + (m - vanishing_x) * t, horizon + t * span) for m in (right, left)]
            return np.array([(vanishing_x, horizon), *edges])

        def within(left: float, right: float, x: float, y: float) -> bool:
            t = (y - horizon) / span
            return vanishing_x + (left - vanishing_x) * t < x < vanishing_x + (right - vanishing_x) * t

        _land(canvas, rng, "road", strip(middle - half, middle + half), horizon, vanishing_x)
        if rng.random() < 0.6:
            mark = even(color(rng, "sky"), 1.2)
            for k in range(7):
                far, near_ = 0.06 * 1.75**k, 0.06 * 1.75 ** (k + 0.45)
                xs = [
                    vanishing_x + (middle + s * 0.02 - vanishing_x) * t for t in (far, near_) for s in (-1, 1)
                ]
                ys = [horizon + far * span, horizon + near_ * span]
                canvas.fill(
                    polygon((xs[0], ys[0]), (xs[1], ys[0]), (xs[3], ys[1]), (xs[2], ys[1])),
                    mark,
                    CLASSES["road"],
                )
        ground.regions["road"] = lambda x, y: within(middle - half, middle + half, x, y)
        return
    near = horizon + span * rng.uniform(0.55, 1.1)
    far = horizon + (near - horizon) * rng.uniform(0.3, 0.6)
    _land(canvas, rng, "road", rectangle(-FAR, far, FAR, near), horizon, vanishing_x)
    if rng.random() < 0.6:
        middle, mark = 0.45 * near + 0.55 * far, even(color(rng, "sky"), 1.2)
        dashes = [
            rectangle(x, middle - 0.06 * (near - far), x + 0.15, middle + 0.02 * (near - far))
            for x in np.arange(-1.5, 1.5, 0.3)
        ]
        canvas.fill(dashes, mark, CLASSES["road"])
    ground.regions = {"road": lambda x, y: far < y < near, **ground.regions}


def _canyon(canvas: Canvas, rng: Rng, ground: Ground, vanishing_x: float) -> None:
    """Draws fronts of buildings that run along the street to the vanishing point."""
    horizon, span = ground.horizon, 0.5 - ground.horizon
    for side in (-1, 1):
        if rng.random() < 0.25:
            continue
        offset = side * rng.uniform(0.6, 1.0) * max(ground.half_width, 0.4)
        height, far = rng.uniform(0.6, 1.8), rng.uniform(0.12, 0.3)
        while far < 2.0:
            near = far * rng.uniform(1.5, 2.6)
            tall = height * rng.uniform(0.75, 1.25)
            corners = [
                (vanishing_x + offset * t, horizon + span * t - h * t)
                for t, h in ((far, 0), (near, 0), (near, tall), (far, tall))
            ]
            wall = surface(
                rng,
                "masonry",
                structures.MASONRY,
                cell=0.3,
                contrast=0.3,
                gradient=(float(rng.uniform(-0.2, 0.2)), 0.2),
            )
            storey = tall / rng.integers(3, 7) / abs(offset)
            panes = placed(facade, 1 / storey, (rng.uniform(0, 9), rng.uniform(0, 9)), rng.uniform(0.8, 1.6))
            front = Paint(
                wall.color, on_side(panes, horizon, vanishing_x), 0.85,
                bright=color(rng, "sky"), dark=0.25 * color(rng, "sky"), gradient=wall.gradient,
            )  # fmt: skip
            canvas.fill(
                np.array(corners),
                front,
                CLASSES["building"],
                0.5 * canvas.light.thickness * max(0.0, 1 - far),
            )
            far = near


def _shore(canvas: Canvas, rng: Rng, ground: Ground, vanishing_x: float, kind: str) -> None:
    """Lays land in front of the water, along a slanting, winding shore."""
    span = 0.5 - ground.horizon
    level, slant = ground.horizon + span * rng.uniform(0.25, 0.85), rng.normal(0, 0.35) * span
    phase, wind = rng.uniform(0, 6.3, 2), rng.uniform(0, 0.09) * span

    def line(x: np.ndarray | float) -> np.ndarray | float:
        curve = level + slant * x + wind * (np.sin(4 * x + phase[0]) + 0.5 * np.sin(9 * x + phase[1]))
        return np.maximum(curve, ground.horizon + 0.02)

    x = np.linspace(-2, 2, 49)
    shape = np.concatenate([np.stack([x, line(x)], 1), [(2, FAR), (-2, FAR)]])
    _land(canvas, rng, kind, shape, ground.horizon, vanishing_x)
    ground.regions[kind] = lambda px, py: bool(py > line(px) + 0.01)


def _pool(canvas: Canvas, rng: Rng, ground: Ground, vanishing_x: float, kind: str) -> None:
    """Lays a lake or a patch of other land on the ground."""
    span = 0.5 - ground.horizon
    y = ground.horizon + span * rng.uniform(0.15, 0.6)
    x, rx, ry = (
        rng.uniform(-0.6, 0.6) * ground.half_width,
        rng.uniform(0.4, 1.0),
        rng.uniform(0.3, 0.9) * (y - ground.horizon),
    )
    _land(canvas, rng, kind, blob(rng, x, y, rx, ry, 0.08), ground.horizon, vanishing_x)
    ground.regions = {
        kind: lambda px, py: ((px - x) / rx) ** 2 + ((py - y) / ry) ** 2 < 0.8,
        **ground.regions,
    }


def draw_outdoors(rng: Rng, height: int, width: int) -> tuple[Canvas, list[Thing]]:
    """Draws a street, a coast or a piece of countryside."""
    base = color(rng, "sky")
    tilt = float(rng.normal(0, 0.09))
    canvas = Canvas(height, width, light(rng, (0.6 * base + 0.35).astype(np.float32)), tilt)
    _sky(canvas, rng, base)
    horizon = float(rng.uniform(-0.38, 0.28))
    vanishing_x = float(rng.uniform(-0.8, 0.8)) * canvas.half_width
    ground = Ground(horizon, float(np.exp(rng.uniform(np.log(0.45), np.log(1.2)))), canvas.half_width)
    everywhere = rectangle(-FAR, horizon, FAR, FAR)
    place = choose(rng, tuple(PLACES))
    backdrops, lands, kinds = PLACES[place]
    _backdrop(canvas, rng, choose(rng, backdrops), horizon)
    land = choose(rng, lands)
    _land(canvas, rng, land, everywhere, horizon, vanishing_x)
    if place == "street":
        if rng.random() < 0.45:
            _canyon(canvas, rng, ground, vanishing_x)
        _road(canvas, rng, ground, vanishing_x)
    elif place == "coast":
        if rng.random() < 0.8:
            _shore(canvas, rng, ground, vanishing_x, choose(rng, ("sand", "sand", "sand", "grass")))
    else:
        feature = choose(rng, ("none", "pool", "land", "road", "road", "water"))
        if feature == "pool":
            _pool(canvas, rng, ground, vanishing_x, "water")
        elif feature == "land":
            _shore(canvas, rng, ground, vanishing_x, "sand" if land == "grass" else "grass")
        elif feature == "road":
            _road(canvas, rng, ground, vanishing_x)
        elif feature == "water":
            _shore(canvas, rng, ground, vanishing_x, "water")
    ground.regions[land] = lambda x, y: True
    supports = {
        **dict.fromkeys(("car", "bus"), ("road",)),
        "boat": ("water",),
        "person": ("grass", "sand", "road"),
    }
    for _ in range(int(rng.integers(2, 6))):
        name = choose(rng, kinds)
        ground.place(rng, name, supports.get(name, ("grass", "sand")), 0.1, 0.85)
    ground.draw(canvas, rng)
    return canvas, ground.things
