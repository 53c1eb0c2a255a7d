from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from cgspn.operators.grid import check_grid
from cgspn.operators.linear import linear, zero_linear
from cgspn.operators.propagation import DIRECTIONS, Direction, Propagation
from cgspn.registry import OPERATORS


@OPERATORS.register_module(name="gspn2")
class GSPN2(nn.Module):
    """Line-scan propagation of a few proxy channels that share one affinity.

    ``P_up(propagate(P_down(x); linear(x)))``: unlike in ``cgspn``, all channels share the affinity, and
    the scan's parameters come from all C channels. P_up starts at zero.

    Args:
        dim: Channels C.
        proxy_dim: Proxy channels that are propagated.
        directions: Scan directions, any of ``tb``, ``bt``, ``lr``, ``rl``.
        chunk: Lines per independent segment; None scans the whole extent.

    Source: arXiv:2512.07884, compact channel propagation. The start values are this project's.
    """

    def __init__(
        self,
        dim: int,
        proxy_dim: int = 8,
        directions: Sequence[Direction] = DIRECTIONS,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        if proxy_dim < 1:
            raise ValueError(f"proxy_dim={proxy_dim} must be at least 1.")
        self.dim = dim
        self.down = linear(dim, proxy_dim)
        self.propagation = Propagation(proxy_dim, dim, directions, chunk, shared_affinity=True)
        self.up = zero_linear(proxy_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes tokens, shape (B, H, W, C) to (B, H, W, C)."""
        check_grid(x, self.dim)
        return self.up(self.propagation(self.down(x), x))
