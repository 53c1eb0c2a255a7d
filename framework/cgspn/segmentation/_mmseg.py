"""The parts of mmsegmentation and its relatives that are used here, imported without their chatter.

They take two seconds to import, so only what is needed to run a network imports this module. Both the
maintained packages (``onedl-*``) and the originals (``mmcv-lite``) will do.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

REQUIREMENT = "Segmentation needs mmsegmentation: pip install 'cgspn[seg]'"
COMPILED = "mmcv._ext"


class CompiledOps(types.ModuleType):
    """Stands for mmcv's compiled operators, which nothing here calls, while their wrappers are imported."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError(f"{name} is a compiled operator of mmcv, which mmcv-lite lacks.")

        return missing


@contextlib.contextmanager
def importable_without_compiled_ops() -> Iterator[None]:
    """Lets ``mmcv.ops`` be imported from mmcv-lite, which lacks the compiled part.

    The stand-in is gone afterwards: mmengine takes its presence for a full mmcv.
    """
    if not is_installed("mmcv-lite") or importlib.util.find_spec(COMPILED) is not None:
        yield
        return
    sys.modules[COMPILED] = CompiledOps(COMPILED)
    try:
        yield
    finally:
        del sys.modules[COMPILED]


def is_installed(distribution: str) -> bool:
    """Whether pip knows a distribution of this name."""
    return any(importlib.metadata.distributions(name=distribution))


# They print and warn about optional packages that are not there.
with (
    warnings.catch_warnings(action="ignore"),
    contextlib.redirect_stdout(io.StringIO()),
    importable_without_compiled_ops(),
):
    try:
        from mmcv.transforms import BaseTransform, LoadImageFromFile, Pad, RandomFlip, RandomResize, Resize
        from mmengine import ConfigDict
        from mmengine.dataset import pseudo_collate
        from mmengine.logging import MMLogger
        from mmseg.datasets import ADE20KDataset
        from mmseg.datasets.transforms import (
            LoadAnnotations,
            PackSegInputs,
            PhotoMetricDistortion,
            RandomCrop,
        )
        from mmseg.evaluation import IoUMetric
        from mmseg.models.decode_heads.decode_head import BaseDecodeHead
        from mmseg.registry import MODELS
    except ImportError as error:
        raise ImportError(f"{REQUIREMENT} ({error}).") from error

__all__ = [
    "MODELS",
    "ADE20KDataset",
    "BaseDecodeHead",
    "BaseTransform",
    "ConfigDict",
    "IoUMetric",
    "LoadAnnotations",
    "LoadImageFromFile",
    "MMLogger",
    "PackSegInputs",
    "Pad",
    "PhotoMetricDistortion",
    "RandomCrop",
    "RandomFlip",
    "RandomResize",
    "Resize",
    "pseudo_collate",
]
