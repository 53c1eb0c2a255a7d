"""Things in a scene: which kinds there are, how large they get, and where they may stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from cgspn.data.scenes import furniture, nature, structures, vehicles
from cgspn.data.scenes.canvas import Canvas

Rng = np.random.Generator
Draw = Callable[[Canvas, Rng, float, float, float, float], None]
Region = Callable[[float, float], bool]

# How each kind is drawn, and its height where it stands at the lower edge of a picture of a near scene.
KINDS: dict[str, tuple[Draw, float]] = {
    "car": (vehicles.car, 0.55),
    "boat": (vehicles.boat, 0.6),
    "bus": (vehicles.bus, 0.85),
    "tree": (nature.tree, 1.4),
    "palm": (nature.palm, 1.4),
    "plant": (nature.plant, 0.75),
    "rock": (nature.rock, 0.45),
    "person": (nature.person, 0.8),
    "house": (structures.house, 1.2),
    "fence": (structures.fence, 0.4),
    "tent": (structures.tent, 0.7),
    "building": (structures.building, 1.6),
    "skyscraper": (structures.skyscraper, 2.2),
    "sofa": (furniture.sofa, 0.5),
    "bed": (furniture.bed, 0.55),
    "chair": (furniture.chair, 0.55),
}


@dataclass
class Thing:
    """One thing in a scene.

    Attributes:
        name: Its class.
        x: Centre of its base, scene coordinates.
        y: Lower edge of its base.
        size: Its height.
        on: What it stands or hangs on, such as ``road``.
    """

    name: str
    x: float
    y: float
    size: float
    on: str


@dataclass
class Ground:
    """The ground plane as a thing meets it.

    Attributes:
        horizon: Height of the horizon.
        near: Scale at the lower edge of the picture.
        half_width: Half of the picture's width.
        regions: Surfaces by name, the uppermost first.
        things: What has been placed.
    """

    horizon: float
    near: float
    half_width: float
    regions: dict[str, Region] = field(default_factory=dict)
    things: list[Thing] = field(default_factory=list)

    def surface(self, x: float, y: float) -> str:
        """Name of the surface at a point of the ground."""
        return next((name for name, region in self.regions.items() if region(x, y)), "")

    def place(self, rng: Rng, name: str, surfaces: Sequence[str], smallest: float, largest: float) -> None:
        """Places a thing of a random size on one of the surfaces, if there is room for it."""
        full = KINDS[name][1] * self.near
        span = 0.5 - self.horizon
        for _ in range(10):
            size = smallest * (largest / smallest) ** float(rng.random() ** 0.5)
            size = min(size, 1.15 * full)
            y = self.horizon + span * size / full
            x = float(rng.uniform(-0.95, 0.95)) * self.half_width
            on = self.surface(x, y)
            if on in surfaces and not self._hidden(x, y, size):
                self.things.append(Thing(name, x, y, size, on))
                return

    def _hidden(self, x: float, y: float, size: float) -> bool:
        standing = (t for t in self.things if t.on in self.regions)
        return any(abs(x - t.x) < 0.35 * (size + t.size) and abs(y - t.y) < 0.3 for t in standing)

    def draw(self, canvas: Canvas, rng: Rng) -> None:
        """Draws what was placed on the ground, far things before near ones."""
        standing = [
            (number, thing) for number, thing in enumerate(self.things, 1) if thing.on in self.regions
        ]
        for number, thing in sorted(standing, key=lambda item: item[1].y):
            far = 1 - (thing.y - self.horizon) / (0.5 - self.horizon)
            haze = canvas.light.thickness * float(np.clip(far, 0, 1)) ** 3
            canvas.instance = number
            KINDS[thing.name][0](canvas, rng, thing.x, thing.y, thing.size, haze)
        canvas.instance = 0
