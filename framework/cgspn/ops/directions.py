"""The four scan directions, their names and the codes that the native operators take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

DIRECTIONS = ("tb", "bt", "lr", "rl")


def direction_codes(directions: Sequence[str]) -> list[int]:
    """Checks direction names and returns their codes, positions in ``DIRECTIONS``.

    Raises:
        ValueError: If ``directions`` is empty, repeats a name or holds an unknown one.
    """
    if isinstance(directions, str):
        names: tuple[str, ...] = (directions,)
    else:
        names = tuple(directions) if isinstance(directions, Iterable) else (directions,)
    unknown = [name for name in names if name not in DIRECTIONS]
    if unknown or not names or len(set(names)) < len(names):
        raise ValueError(
            f"directions must be distinct names out of {', '.join(DIRECTIONS)}, at least one; got {names!r}."
        )
    return [DIRECTIONS.index(name) for name in names]


def is_vertical(direction: str) -> bool:
    """Whether the scan lines of ``direction`` are image rows (else they are columns)."""
    return direction in ("tb", "bt")


def is_reversed(direction: str) -> bool:
    """Whether the scan starts at the bottom or right edge."""
    return direction in ("bt", "rl")
