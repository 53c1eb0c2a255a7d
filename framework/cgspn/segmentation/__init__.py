"""Semantic segmentation by mmsegmentation's datasets, decode heads and metric, imported lazily."""

from cgspn.segmentation.datamodule import ADE20KDataModule
from cgspn.segmentation.module import SegmentationModule

__all__ = ["ADE20KDataModule", "SegmentationModule"]
