from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cgspn.operators.grid import check_grid
from cgspn.operators.linear import linear
from cgspn.registry import OPERATORS


@OPERATORS.register_module(name="attention")
class Attention(nn.Module):
    """Multi-head self-attention over all positions of the token grid.

    Args:
        dim: Channels C.
        num_heads: Heads; must divide ``dim``.
        qkv_bias: Whether queries, keys and values have a bias.

    Raises:
        ValueError: If ``num_heads`` does not divide ``dim``.
    """

    needs_positions = True

    def __init__(self, dim: int, num_heads: int = 8, qkv_bias: bool = True) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.dim, self.num_heads = dim, num_heads
        self.qkv = linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes tokens, shape (B, H, W, C) to (B, H, W, C)."""
        check_grid(x, self.dim)
        B, H, W, C = x.shape
        qkv = self.qkv(x).view(B, H * W, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(B, H, W, C))


def check_heads(dim: int, num_heads: int) -> None:
    """Raises ValueError unless ``num_heads`` divides ``dim``."""
    if num_heads < 1 or dim % num_heads:
        divisors = [str(n) for n in range(1, dim + 1) if dim % n == 0]
        raise ValueError(f"num_heads={num_heads} does not divide dim={dim}; valid: {', '.join(divisors)}.")
