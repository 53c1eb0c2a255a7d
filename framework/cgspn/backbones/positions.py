from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def resample_grid(grid: Tensor, height: int, width: int) -> Tensor:
    """Resamples (1, H, W, C) to (1, height, width, C): bicubic, antialiased, in float32 at least."""
    if grid.shape[1:3] == (height, width):
        return grid
    exact = grid.permute(0, 3, 1, 2).to(torch.promote_types(grid.dtype, torch.float32))
    exact = F.interpolate(exact, (height, width), mode="bicubic", antialias=True, align_corners=False)
    return exact.permute(0, 2, 3, 1).to(grid.dtype)


class LearnedPositions(nn.Module):
    """A learned vector per grid position, added to the tokens and resampled to any grid.

    Args:
        grid: Rows and columns of the grid that the vectors are stored for.
        embed_dim: Channels C.
    """

    def __init__(self, grid: tuple[int, int], embed_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, *grid, embed_dim))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Adds positions to (B, H, W, C)."""
        return x + resample_grid(self.weight, x.shape[1], x.shape[2]).to(x.dtype)
