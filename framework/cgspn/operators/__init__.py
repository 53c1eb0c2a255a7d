"""Token mixers: modules (B, H, W, C) -> (B, H, W, C), chosen by name from the registry."""

from cgspn.operators.attention import Attention

__all__ = ["Attention"]
