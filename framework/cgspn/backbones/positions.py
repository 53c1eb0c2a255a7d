from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def resampling_matrix(old: int, new: int, like: Tensor) -> Tensor:
    """The matrix (new, old) of bicubic, antialiased resampling along one axis, of the kind of ``like``."""
    # Along the last axis: torch 2.13 resamples wrongly along a column, an image of width 1.
    basis = torch.eye(old, dtype=like.dtype, device=like.device)[None, :, None, :]
    return F.interpolate(basis, (1, new), mode="bicubic", antialias=True, align_corners=False)[0, :, 0, :].T


def resample_grid(grid: Tensor, height: int, width: int) -> Tensor:
    """Resamples (1, H, W, C) to (1, height, width, C): bicubic, antialiased, in float32 at least.

    Two matrix products: the gradient of antialiased bicubic interpolation itself does not compile for
    dynamic sizes (https://github.com/pytorch/pytorch/issues/197622).
    """
    if grid.shape[1:3] == (height, width):
        return grid
    exact = grid.to(torch.promote_types(grid.dtype, torch.float32))
    with torch.autocast(grid.device.type, enabled=False):
        rows = resampling_matrix(grid.shape[1], height, exact)
        columns = resampling_matrix(grid.shape[2], width, exact)
        exact = torch.tensordot(rows, exact, dims=([1], [1])).squeeze(1)
        exact = torch.matmul(columns, exact)[None]
    return exact.to(grid.dtype)


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
