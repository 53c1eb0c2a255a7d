"""Backbones: encoders that stack blocks, their pooling heads and their weights."""

from cgspn.backbones import heads, presets, raw_patches
from cgspn.backbones.vision_transformer import EncoderOutput, EncoderTrace, VisionEncoder

__all__ = ["EncoderOutput", "EncoderTrace", "VisionEncoder", "heads", "presets", "raw_patches"]
