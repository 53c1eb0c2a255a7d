"""What messages about bad input have in common."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Iterable
from typing import Any


def unknown_name(kind: str, name: object, valid: Iterable[str]) -> str:
    """One line that names an unknown value, the nearest match and the valid choices."""
    choices = sorted(valid)
    nearest = difflib.get_close_matches(str(name), choices, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    return f"Unknown {kind} {name!r}{hint} Valid: {', '.join(choices)}."


def check_at_least(least: int, **values: Any) -> None:
    """Raises ValueError for the first value that is not a whole number of at least ``least``."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")
