"""The parts of mmsegmentation and its relatives that are used here, imported without their chatter.

They take two seconds to import, so only what is needed to run a network imports this module.
"""

from __future__ import annotations

import contextlib
import io
import warnings

REQUIREMENT = "Segmentation needs mmsegmentation: pip install 'cgspn[seg]'"

with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    # They print and warn about optional packages that are not there.
    warnings.simplefilter("ignore")
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
