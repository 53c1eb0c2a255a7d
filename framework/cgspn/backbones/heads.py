"""Pooling heads: features (B, H, W, C), or prefix tokens (B, P, C), to a summary (B, C)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cgspn.blocks.layers import Mlp
from cgspn.operators.attention import check_heads
from cgspn.operators.linear import linear
from cgspn.registry import HEADS


@HEADS.register_module(name="avg")
class AveragePool(nn.Module):
    """The mean of all tokens; it has no parameters."""

    def forward(self, features: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, C)."""
        return features.mean(dim=(1, 2))


@HEADS.register_module(name="token")
class FirstToken(nn.Module):
    """The first prefix token, a ViT's class token; it has no parameters."""

    reads_prefix = True

    def forward(self, prefix: Tensor) -> Tensor:
        """Maps prefix tokens (B, P, C) to (B, C)."""
        return prefix[:, 0]


@HEADS.register_module(name="map")
class AttentionPool(nn.Module):
    """Multi-head attention pooling by one learned query, followed by an MLP with residual.

    Args:
        dim: Channels C.
        num_heads: Heads; must divide ``dim``.
        mlp_dim: Hidden channels of the MLP; None means ``4 * dim``.
        activation: A key of ``cgspn.blocks.layers.ACTIVATIONS``.
        norm_eps: Epsilon of the LayerNorm.

    Raises:
        ValueError: If ``num_heads`` does not divide ``dim``.

    Source: the MAP head of SigLIP (arXiv:2303.15343), after arXiv:2106.04560.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        mlp_dim: int | None = None,
        activation: str = "gelu_tanh",
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.probe = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.trunc_normal_(self.probe, std=0.02)
        self.q = linear(dim, dim)
        self.kv = linear(dim, 2 * dim)
        self.proj = linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, mlp_dim or 4 * dim, activation)

    def forward(self, features: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, C)."""
        B, H, W, C = features.shape
        heads, width = self.num_heads, C // self.num_heads
        q = self.q(self.probe).view(1, 1, heads, width).expand(B, 1, heads, width).transpose(1, 2)
        k, v = self.kv(features).view(B, H * W, 2, heads, width).permute(2, 0, 3, 1, 4).unbind(0)
        x = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, C))
        return x + self.mlp(self.norm(x))
