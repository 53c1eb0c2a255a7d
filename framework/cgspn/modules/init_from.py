from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class InitFrom:
    """Weights to start from: one ``part``, such as ``encoder``, of the checkpoint at ``path``."""

    path: str
    part: str = "encoder"
