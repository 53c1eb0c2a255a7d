"""Data: DataModules for image-text shards and image folders, and the scenes that the project draws itself.

The DataModules load on first use: drawing scenes needs neither torch nor Lightning.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cgspn.data.folder import ImageFolderDataModule
    from cgspn.data.shards import WebDatasetDataModule
    from cgspn.data.transforms import ImageTransform

__all__ = ["ImageFolderDataModule", "ImageTransform", "WebDatasetDataModule"]

_HOMES = {
    "ImageFolderDataModule": "cgspn.data.folder",
    "ImageTransform": "cgspn.data.transforms",
    "WebDatasetDataModule": "cgspn.data.shards",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
