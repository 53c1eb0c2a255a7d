"""Vision encoders whose token mixer is two-dimensional line-scan propagation instead of attention."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cgspn.timm_models import register_when_imported

if TYPE_CHECKING:
    from cgspn.backbones import VisionEncoder, create_model, list_models
    from cgspn.data.transforms import ImageTransform
    from cgspn.ops import line_scan

__version__ = "0.1.0"
__all__ = ["ImageTransform", "VisionEncoder", "create_model", "line_scan", "list_models"]

# Loaded on first use: importing torch takes seconds.
_HOMES = {
    "ImageTransform": "cgspn.data.transforms",
    "VisionEncoder": "cgspn.backbones",
    "create_model": "cgspn.backbones",
    "line_scan": "cgspn.ops",
    "list_models": "cgspn.backbones",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


register_when_imported()
