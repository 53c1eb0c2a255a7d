"""What messages about bad input have in common."""

from __future__ import annotations

import difflib
import math
import numbers
import sys
from collections.abc import Iterable, Sequence
from typing import Any


def unknown_name(kind: str, name: object, valid: Iterable[str]) -> str:
    """One line that names an unknown value, the nearest match and the valid choices."""
    choices = sorted(valid)
    nearest = difflib.get_close_matches(str(name), choices, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    return f"Unknown {kind} {name!r}{hint} Valid: {', '.join(choices)}."


def check_at_least(least: int, **values: Any) -> None:
    """Raises ValueError for the first value that is no whole number from ``least`` to what 64 bits hold."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")
        if int(value) > sys.maxsize:
            raise ValueError(f"{name} must be at most {sys.maxsize}, got {value}.")


def are_numbers(values: Any, count: int, kind: type = float) -> bool:
    """Whether ``values`` is a sequence of ``count`` finite numbers, whole ones for ``int``."""
    wanted = numbers.Integral if kind is int else numbers.Real
    return (
        isinstance(values, Sequence)
        and len(values) == count
        and all(isinstance(v, wanted) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    )
