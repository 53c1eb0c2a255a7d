"""What messages about bad input have in common."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown_name(kind: str, name: object, valid: Iterable[str]) -> str:
    """One line that names an unknown value, the nearest match and the valid choices."""
    choices = sorted(valid)
    nearest = difflib.get_close_matches(str(name), choices, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    return f"Unknown {kind} {name!r}{hint} Valid: {', '.join(choices)}."
