from __future__ import annotations

from torch import Tensor

from cgspn.ops.checks import check_tensors


def check_grid(x: Tensor, dim: int) -> None:
    """Raises ValueError unless ``x`` is a grid of tokens, shape (B, H, W, dim)."""
    check_tensors(x=x)
    if x.dim() != 4 or x.shape[3] != dim:
        raise ValueError(f"x must have shape (B, H, W, {dim}), got {tuple(x.shape)}.")
