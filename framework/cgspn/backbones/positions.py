from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Resampling = Literal["bicubic_antialias", "bicubic", "bilinear_antialias"]
RESAMPLINGS = get_args(Resampling)


def resampling_matrix(old: int, new: int, like: Tensor, kind: Resampling = "bicubic_antialias") -> Tensor:
    """The matrix (new, old) of resampling along one axis, of the kind of ``like``."""
    # Along the last axis: torch 2.13 resamples wrongly along a column, an image of width 1.
    basis = torch.eye(old, dtype=like.dtype, device=like.device)[None, :, None, :]
    mode, _, antialias = kind.partition("_")
    resampled = F.interpolate(basis, (1, new), mode=mode, antialias=bool(antialias), align_corners=False)
    return resampled[0, :, 0, :].T


def resample_grid(grid: Tensor, height: int, width: int, kind: Resampling = "bicubic_antialias") -> Tensor:
    """Resamples (1, H, W, C) to (1, height, width, C), in float32 at least.

    Two matrix products: the gradient of antialiased bicubic interpolation itself does not compile for
    dynamic sizes (https://github.com/pytorch/pytorch/issues/197622).
    """
    if grid.shape[1:3] == (height, width):
        return grid
    exact = grid.to(torch.promote_types(grid.dtype, torch.float32))
    with torch.autocast(grid.device.type, enabled=False):
        rows = resampling_matrix(grid.shape[1], height, exact, kind)
        columns = resampling_matrix(grid.shape[2], width, exact, kind)
        exact = torch.tensordot(rows, exact, dims=([1], [1])).squeeze(1)
        exact = torch.matmul(columns, exact)[None]
    return exact.to(grid.dtype)


class LearnedPositions(nn.Module):
    """A learned vector per grid position, added to the tokens and resampled to any grid.

    Args:
        grid: Rows and columns of the grid that the vectors are stored for.
        embed_dim: Channels C.
        resampling: How they are resampled to another grid.

    Raises:
        ValueError: If the resampling is unknown.
    """

    def __init__(
        self, grid: tuple[int, int], embed_dim: int, resampling: Resampling = "bicubic_antialias"
    ) -> None:
        super().__init__()
        if resampling not in RESAMPLINGS:
            raise ValueError(f"pos_resampling={resampling!r} is unknown; valid: {', '.join(RESAMPLINGS)}.")
        self.resampling = resampling
        self.weight = nn.Parameter(torch.empty(1, *grid, embed_dim))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Adds positions to (B, H, W, C)."""
        return x + resample_grid(self.weight, x.shape[1], x.shape[2], self.resampling).to(x.dtype)

    def resampled(self, weight: Tensor) -> Tensor:
        """Vectors (1, H, W, C) of any grid, for the own grid."""
        _, height, width, _ = self.weight.shape
        return resample_grid(weight, height, width, self.resampling)
