from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from cgspn.operators.grid import check_grid
from cgspn.operators.linear import linear, zero_linear
from cgspn.operators.propagation import DIRECTIONS, Direction, Propagation
from cgspn.ops import token_linear
from cgspn.registry import OPERATORS


def default_latent_dim(dim: int) -> int:
    """The larger of C / 18 and min(64, C / 4), rounded to a multiple of 16 (at least 16)."""
    return max(16, 16 * round(max(dim / 18, min(64, dim / 4)) / 16))


@OPERATORS.register_module(name="cgspn")
class CGSPN(nn.Module):
    """Line-scan propagation in a compressed latent space.

    ``x_c = P_down(x)``; ``a, lam, u = linear(x_c)``; ``P_up(propagate(x_c; a, lam, u))``. P_up starts at
    zero, so that a block begins as its MLP.

    Args:
        dim: Channels C.
        latent_dim: Channels C_c that are propagated; None means ``default_latent_dim(dim)``.
        directions: Scan directions, any of ``tb``, ``bt``, ``lr``, ``rl``.
        chunk: Lines per independent segment; None scans the whole extent.
        shared_affinity: Whether all channels share one affinity.
        gates: ``linear`` or ``sigmoid``.
        state_norm: ``none``, ``extent`` or ``rms``; see ``Propagation``.
        projections: Keeps a C x C projection before P_down and one after P_up.

    Source: arXiv:2606.00746. The gates' activation, the start values and ``state_norm`` are this project's.
    """

    def __init__(
        self,
        dim: int,
        latent_dim: int | None = None,
        directions: Sequence[Direction] = DIRECTIONS,
        chunk: int | None = None,
        shared_affinity: bool = False,
        gates: Literal["linear", "sigmoid"] = "linear",
        state_norm: Literal["none", "extent", "rms"] = "none",
        projections: bool = False,
    ) -> None:
        super().__init__()
        if latent_dim is None:
            latent_dim = default_latent_dim(dim)
        if latent_dim < 1:
            raise ValueError(f"latent_dim={latent_dim} must be at least 1.")
        self.dim = dim
        self.in_proj = linear(dim, dim) if projections else nn.Identity()
        self.down = linear(dim, latent_dim)
        self.propagation = Propagation(
            latent_dim, latent_dim, directions, chunk, shared_affinity, gates, state_norm
        )
        self.up = zero_linear(latent_dim, dim)
        self.out_proj = linear(dim, dim) if projections else nn.Identity()

    def fuses_residual(self, x: Tensor, norm: nn.LayerNorm, scale: Tensor | None) -> bool:
        """Whether ``forward`` should take over norm, LayerScale and residual of the block around it."""
        down, up, norm_bias = self.down, self.up, norm.bias
        plain = type(down) is type(up) is nn.Linear and norm_bias is not None
        if not plain or isinstance(self.in_proj, nn.Linear):
            return False
        tensors = (x, norm.weight, norm_bias, down.weight, down.bias, up.weight, up.bias)
        obstacle = token_linear.obstacle(
            x, down.out_features, tensors if scale is None else (*tensors, scale)
        )
        return token_linear.CHOICE.fused(obstacle)

    def forward(self, x: Tensor, norm: nn.LayerNorm | None = None, scale: Tensor | None = None) -> Tensor:
        """Mixes tokens, shape (B, H, W, C) to (B, H, W, C).

        With ``norm``, after ``fuses_residual`` said yes, returns ``x + scale * mixed(norm(x))``; beside the
        narrow tensors that reads ``x`` twice and writes the result once.
        """
        if norm is not None:
            down, up, ops = self.down, self.up, torch.ops.cgspn
            propagation = self.propagation
            if not torch.is_grad_enabled() and propagation.fuses_sublayer(x):
                generate = propagation.generate
                return ops.latent_residual(
                    x,
                    norm.weight,
                    norm.bias,
                    down.weight,
                    down.bias,
                    generate.weight,
                    generate.bias,
                    up.weight,
                    up.bias,
                    scale,
                    norm.eps,
                    propagation.codes,
                    propagation.chunk,
                )
            latent = ops.layer_norm_linear(x, norm.weight, norm.bias, down.weight, down.bias, norm.eps)
            mixed = propagation(latent, latent)
            return ops.linear_residual(mixed, up.weight, up.bias, scale, x)
        check_grid(x, self.dim)
        latent = self.down(self.in_proj(x))
        return self.out_proj(self.up(self.propagation(latent, latent)))
