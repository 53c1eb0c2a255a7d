from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from cgspn.operators.linear import linear
from cgspn.ops import latent_propagation, line_scan
from cgspn.ops.directions import direction_codes, is_vertical
from cgspn.ops.latent_propagation import split_parameters, use_latent_propagation
from cgspn.ops.layout import pad_logits

Direction = Literal["tb", "bt", "lr", "rl"]

DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
GATES = ("linear", "sigmoid")
STATE_NORMS = ("none", "extent", "rms")


class Propagation(nn.Module):
    """A line scan whose affinity and gates are a linear function of some features.

    One linear layer makes them all; its rows are ``[a (D, 3, Ca) | lam (D, C) | u (D, C)]`` for D directions.

    Args:
        dim: Channels C that are propagated.
        parameter_dim: Channels of the features that the scan's parameters are made from.
        directions: Scan directions, any of ``tb``, ``bt``, ``lr``, ``rl``.
        chunk: Lines per independent segment; None scans the whole extent.
        shared_affinity: Whether all channels share one affinity (Ca = 1 instead of C).
        gates: ``linear`` or ``sigmoid``: what ``lam`` and ``u`` pass through. Their bias starts at 1.
        state_norm: ``none``; ``extent`` divides ``lam`` by the number of lines that are summed; ``rms``
            divides each position's result by its root mean square over the channels.

    Raises:
        ValueError: If an argument is none of the valid choices.
    """

    vertical: Tensor

    def __init__(
        self,
        dim: int,
        parameter_dim: int,
        directions: Sequence[Direction] = DIRECTIONS,
        chunk: int | None = None,
        shared_affinity: bool = False,
        gates: Literal["linear", "sigmoid"] = "linear",
        state_norm: Literal["none", "extent", "rms"] = "none",
    ) -> None:
        super().__init__()
        self.codes = direction_codes(directions)
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk={chunk} must be at least 1, or null for none.")
        if gates not in GATES:
            raise ValueError(f"gates={gates!r} is unknown; valid: {', '.join(GATES)}.")
        if state_norm not in STATE_NORMS:
            raise ValueError(f"state_norm={state_norm!r} is unknown; valid: {', '.join(STATE_NORMS)}.")
        self.dim = dim
        self.directions = tuple(directions)
        self.chunk = chunk
        self.gates = gates
        self.state_norm = state_norm
        self.affinity_dim = 1 if shared_affinity else dim
        vertical = [is_vertical(direction) for direction in self.directions]
        self.register_buffer("vertical", torch.tensor(vertical), persistent=False)
        D = len(self.directions)
        self.sizes = (D * 3 * self.affinity_dim, D * dim, D * dim)
        self.generate = linear(parameter_dim, sum(self.sizes))
        nn.init.ones_(self.generate.bias[self.sizes[0] :])

    def scan_parameters(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Affinity logits and gates of each pixel.

        Args:
            features: Shape (B, H, W, parameter_dim).

        Returns:
            ``a`` (B, D, 3, Ca, H, W), ``lam`` and ``u`` (B, D, C, H, W), views of one channels-last tensor.
        """
        num, generate = len(self.directions), self.generate
        if self.affinity_dim == 1 and features.is_cuda:
            weight, bias, padding = pad_logits(generate.weight, generate.bias, num)
            p = nn.functional.linear(features, weight, bias)
        else:
            padding, p = 0, generate(features)
        a, lam, u = split_parameters(p, num, self.affinity_dim, padding)
        if self.gates == "sigmoid":
            lam, u = lam.sigmoid(), u.sigmoid()
        return a, lam, u

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """Propagates ``x`` (B, H, W, C) with parameters made from ``features`` (B, H, W, parameter_dim)."""
        y = self.generating_scan(x) if features is x else None
        if y is None:
            y = self.scan(x, features)
        if self.state_norm == "rms":
            y = nn.functional.rms_norm(y, (self.dim,), eps=1e-6)
        return y

    def fuses_sublayer(self, x: Tensor) -> bool:
        """Whether ``latent_propagation`` is chosen for tokens like ``x`` and is all there is to do."""
        plain = self.gates == "linear" and self.state_norm == "none"
        return plain and use_latent_propagation(x, self.generate.weight)

    def generating_scan(self, x: Tensor) -> Tensor | None:
        """``latent_propagation`` where it is chosen and makes all of the parameters from ``x``, else None."""
        if self.gates != "linear" or self.state_norm == "extent":
            return None
        # Looked up once: a module's attributes take as long as a small operator.
        generate = self.generate
        weight, planes = generate.weight, x.permute(0, 3, 1, 2)
        if not use_latent_propagation(planes, weight):
            return None
        y = latent_propagation(planes, weight, generate.bias, directions=self.directions, chunk=self.chunk)
        return y.permute(0, 2, 3, 1)

    def scan(self, x: Tensor, features: Tensor) -> Tensor:
        """The line scan of ``x`` with parameters that are made first."""
        a, lam, u = self.scan_parameters(features)
        if self.state_norm == "extent":
            lam = lam / self.extents(*x.shape[1:3]).to(lam.dtype)[:, None, None, None]
        x = x.permute(0, 3, 1, 2)
        return line_scan(x, a, lam, u, directions=self.directions, chunk=self.chunk).permute(0, 2, 3, 1)

    def extents(self, height: int, width: int) -> Tensor:
        """Lines that a scan of a grid sums in each direction, shape (D,), float32."""
        rows, columns = (n if self.chunk is None else min(n, self.chunk) for n in (height, width))
        return torch.where(self.vertical, float(rows), float(columns))
