"""English captions: what is in a picture and where, in at most 24 words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cgspn.data.scenes.canvas import Canvas
from cgspn.data.scenes.classes import CLASSES
from cgspn.data.scenes.placing import Thing

Rng = np.random.Generator
MAX_WORDS = 24
NUMBERS = ("", "a", "two", "three", "four", "five", "six")
WORDS = {"windowpane": "window", "palm": "palm tree", "plant": "plant", "grass": "grass"}
PLURALS = {
    "bus": "buses",
    "person": "people",
    "tree": "trees",
    "building": "buildings",
    "mountain": "mountains",
    "skyscraper": "skyscrapers",
    "house": "houses",
}
NAMES = {number: name for name, number in CLASSES.items()}


def _noun(name: str, count: int) -> str:
    word = WORDS.get(name, name)
    return word if count == 1 else PLURALS.get(name, word + "s")


def _where(positions: Sequence[float]) -> str:
    """Place of a group whose members have the given positions, -1 at the left edge to 1 at the right."""
    if min(positions) < -0.3 and max(positions) > 0.3:
        return "on both sides"
    mean = float(np.mean(positions))
    if mean < -0.3:
        return "on the left"
    if mean > 0.3:
        return "on the right"
    return "in the middle"


def _groups(canvas: Canvas, things: Sequence[Thing]) -> list[tuple[str, str, list[float]]]:
    """Visible things by class: name, what they are on, positions; the largest group first."""
    area = np.bincount(canvas.instances.ravel(), minlength=len(things) + 1) / canvas.instances.size
    columns = np.broadcast_to(np.arange(canvas.width), canvas.instances.shape).ravel()
    centre = np.bincount(canvas.instances.ravel(), weights=columns, minlength=len(things) + 1)
    groups: dict[str, tuple[float, str, list[float]]] = {}
    for number, thing in enumerate(things, 1):
        if area[number] < 0.006:
            continue
        x = centre[number] / (area[number] * canvas.instances.size) / canvas.width * 2 - 1
        total, on, positions = groups.get(thing.name, (0.0, thing.on, []))
        groups[thing.name] = (total + area[number], on, [*positions, x])
    ordered = sorted(groups.items(), key=lambda item: -item[1][0])
    return [(name, on, positions) for name, (_, on, positions) in ordered]


def _setting(rng: Rng, canvas: Canvas, named: set[str]) -> str:
    """The surroundings: sky, backdrop, ground; or walls, floor, ceiling."""
    share = np.bincount(canvas.labels.ravel(), minlength=151) / canvas.labels.size
    seen = [name for name in CLASSES if share[CLASSES[name]] > 0.02 and name not in named]
    behind = [n for n in ("mountain", "skyscraper", "building", "house", "tree") if n in seen]
    lower = [n for n in ("road", "water", "sand", "grass") if n in seen]
    inside = [n for n in ("wall", "floor", "ceiling") if n in seen]
    if inside:
        rng.shuffle(inside)
        return "room with " + " and ".join(inside)
    parts = [" and ".join(_noun(n, 2) for n in behind)] if behind else []
    if "sky" in seen:
        parts.insert(0, "sky")
    if lower:
        parts.append(" and ".join(lower))
    return " above ".join(parts)


def describe(rng: Rng, canvas: Canvas, things: Sequence[Thing]) -> str:
    """Describes a finished picture.

    Args:
        rng: Source of the choice of words.
        canvas: The picture with its label and instance maps.
        things: The things in the order of their instance numbers.

    Returns:
        A caption of at most 24 words, the most visible things first.
    """
    phrases: list[str] = []
    supports: list[str] = []
    groups = _groups(canvas, things)
    for name, on, positions in groups:
        count = min(len(positions), 6)
        phrases.append(f"{NUMBERS[count]} {_noun(name, count)}{{}} {_where(positions)}")
        said = on and rng.random() < (0.8 if name in ("boat", "car", "bus") else 0.3)
        supports.append(f" on the {on}" if said else "")
    setting = _setting(rng, canvas, {name for name, _, _ in groups})
    first = rng.random() < 0.4

    def text() -> str:
        parts = [phrase.format(support) for phrase, support in zip(phrases, supports, strict=True)]
        if setting:
            parts = [setting, *parts] if first else [*parts, setting]
        return ", ".join(parts)

    # Too long: first what things stand on goes, then the least visible things.
    while len(text().split()) > MAX_WORDS:
        if any(supports):
            last = max(k for k, support in enumerate(supports) if support)
            supports[last] = ""
        else:
            phrases.pop()
            supports.pop()
    return text()
