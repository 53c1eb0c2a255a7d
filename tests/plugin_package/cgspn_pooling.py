"""A token mixer for cgspn: what a neighbourhood has that its centre has not."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from cgspn.registry import OPERATORS


@OPERATORS.register_module(name="pooling")
class Pooling(nn.Module):
    """Average of a neighbourhood minus its centre, then a linear layer (arXiv:2111.11418).

    Args:
        dim: Channels of a token.
        size: Side of the neighbourhood in tokens, odd.

    Raises:
        ValueError: If ``size`` is even.
    """

    def __init__(self, dim: int, size: int = 3) -> None:
        super().__init__()
        if size % 2 == 0:
            raise ValueError(f"size={size} must be odd.")
        self.size = size
        self.project = nn.Linear(dim, dim)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes tokens (B, H, W, C)."""
        image = x.permute(0, 3, 1, 2)
        mean = functional.avg_pool2d(image, self.size, 1, self.size // 2, count_include_pad=False)
        return self.project(mean.permute(0, 2, 3, 1) - x)
