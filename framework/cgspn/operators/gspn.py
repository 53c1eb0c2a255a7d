from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cgspn.operators.cgspn import default_latent_dim
from cgspn.operators.grid import check_grid
from cgspn.operators.linear import linear, zero_linear
from cgspn.operators.propagation import DIRECTIONS, Direction, Propagation
from cgspn.registry import OPERATORS


class GlobalResponseNorm(nn.Module):
    """Global response normalisation over the token grid (arXiv:2301.00808, equations 1 to 3).

    Args:
        dim: Channels C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(dim))
        self.beta = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to the same shape."""
        # Sums of squares over a large grid overflow float16.
        norm = torch.linalg.vector_norm(
            x, dim=(1, 2), keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32)
        )
        response = norm / (norm.mean(dim=-1, keepdim=True) + 1e-6)
        return x + self.gamma * (x * response.to(x.dtype)) + self.beta


class DepthwiseConv(nn.Module):
    """A 3 x 3 depth-wise convolution on a token grid, followed by SiLU.

    Args:
        dim: Channels C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to the same shape."""
        return F.silu(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


@OPERATORS.register_module(name="gspn")
class GSPN(nn.Module):
    """Line-scan propagation of every channel with its own affinity, inside GSPN's shell.

    ``z = silu(conv(in_proj(x)))``; ``a, lam, u = linear(reduce(z))``; ``y = z + propagate(z; a, lam, u)``;
    ``out_proj(grn(y))``. Each part of the shell can be left out. ``out_proj`` starts at zero.

    Args:
        dim: Channels C.
        parameter_dim: Channels that ``reduce`` leaves for making the scan's parameters; None means
            ``default_latent_dim(dim)``.
        directions: Scan directions, any of ``tb``, ``bt``, ``lr``, ``rl``.
        chunk: Lines per independent segment; None scans the whole extent.
        inner_residual: Adds the scan's input to its result.
        projections: Keeps the linear layers C to E before and E to C after everything else.
        expansion: E / C, the factor by which the channels are expanded; needs ``projections``.
        depthwise_conv: Keeps the convolution and its SiLU before the scan.
        grn: Keeps the global response normalisation after the scan.

    Raises:
        ValueError: If an argument does not fit.

    Source: arXiv:2501.12381. The order of the shell's parts and the start values are this project's.
    """

    def __init__(
        self,
        dim: int,
        parameter_dim: int | None = None,
        directions: Sequence[Direction] = DIRECTIONS,
        chunk: int | None = None,
        inner_residual: bool = True,
        projections: bool = True,
        expansion: int = 2,
        depthwise_conv: bool = True,
        grn: bool = True,
    ) -> None:
        super().__init__()
        if expansion < 1:
            raise ValueError(f"expansion={expansion} must be at least 1.")
        if expansion > 1 and not projections:
            raise ValueError(f"expansion={expansion} needs projections: true; without them it must be 1.")
        parameter_dim = default_latent_dim(dim) if parameter_dim is None else parameter_dim
        if parameter_dim < 1:
            raise ValueError(f"parameter_dim={parameter_dim} must be at least 1.")
        inner_dim = expansion * dim
        self.dim, self.inner_residual = dim, inner_residual
        self.in_proj = linear(dim, inner_dim) if projections else nn.Identity()
        self.conv = DepthwiseConv(inner_dim) if depthwise_conv else nn.Identity()
        self.reduce = linear(inner_dim, parameter_dim)
        self.propagation = Propagation(inner_dim, parameter_dim, directions, chunk)
        self.grn = GlobalResponseNorm(inner_dim) if grn else nn.Identity()
        self.out_proj = zero_linear(inner_dim, dim) if projections else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Mixes tokens, shape (B, H, W, C) to (B, H, W, C)."""
        check_grid(x, self.dim)
        z = self.conv(self.in_proj(x))
        y = self.propagation(z, self.reduce(z))
        if self.inner_residual:
            y = z + y
        return self.out_proj(self.grn(y))
