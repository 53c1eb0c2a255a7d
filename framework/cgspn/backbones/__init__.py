"""Backbones: encoders that stack blocks, their pooling heads and their weights."""

from cgspn.backbones import heads, presets, raw_patches
from cgspn.backbones.pretrained import create_model, list_models
from cgspn.backbones.vision_transformer import EncoderOutput, EncoderTrace, VisionEncoder

__all__ = [
    "EncoderOutput",
    "EncoderTrace",
    "VisionEncoder",
    "create_model",
    "heads",
    "list_models",
    "presets",
    "raw_patches",
]
