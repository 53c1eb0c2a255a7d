"""Blocks: norm, residual and MLP around one operator."""

from cgspn.blocks.vit_block import ViTBlock

__all__ = ["ViTBlock"]
