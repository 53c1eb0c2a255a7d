"""One scene: a picture, its label map and its caption, a function of (seed, index) and the size alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cgspn.data.scenes.caption import describe
from cgspn.data.scenes.outdoors import draw_outdoors
from cgspn.data.scenes.rooms import draw_room

INDOORS = 0.38


@dataclass(frozen=True)
class Scene:
    """A drawn scene.

    Attributes:
        image: RGB picture, uint8, shape (height, width, 3).
        labels: ADE20K-150 class ids, 0 = ignore, uint8, shape (height, width).
        caption: What is where, in English.
    """

    image: np.ndarray
    labels: np.ndarray
    caption: str


def draw_scene(seed: int, index: int, height: int = 64, width: int | None = None) -> Scene:
    """Draws scene number ``index`` of the series ``seed``.

    The same scene is drawn at every size, natively: larger pictures show finer detail.

    Args:
        seed: Series; different series have nothing in common.
        index: Number within the series.
        height: Rows, at least 8.
        width: Columns, at least 8; default: as many as rows. A wider picture shows more to both sides.

    Raises:
        ValueError: If a size is below 8 or a number is negative.
    """
    width = height if width is None else width
    if min(height, width) < 8:
        raise ValueError(f"A scene needs at least 8 x 8 pixels, got {height} x {width}.")
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must not be negative, got seed {seed}, index {index}.")
    rng, words, grain = (np.random.Generator(np.random.PCG64([seed, index, part])) for part in range(3))
    draw = draw_room if rng.random() < INDOORS else draw_outdoors
    canvas, things = draw(rng, height, width)
    rgb = canvas.rgb * canvas.light.tint
    noise = 0.01 * grain.random() * grain.standard_normal((height, width, 1), dtype=np.float32)
    image = (np.clip(rgb + noise, 0, 1) * 255 + 0.5).astype(np.uint8)
    return Scene(image, canvas.labels, describe(words, canvas, things))
