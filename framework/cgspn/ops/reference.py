"""Line-scan propagation in plain PyTorch: the definition that every kernel is tested against.

Shape legend: B batch, D directions, C channels, Ca affinity channels (1 or C), S scan lines, L line length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cgspn.ops.directions import DIRECTIONS, direction_codes, is_reversed, is_vertical

# Below this the sigmoid is held constant; every row stays stochastic and finite in float32.
LOGIT_MIN = -40.0


def line_scan_ref(
    x: Tensor,
    a: Tensor,
    lam: Tensor | None = None,
    u: Tensor | None = None,
    *,
    directions: Sequence[str] = DIRECTIONS,
    chunk: int | None = None,
    normalize: bool = True,
    reduce: str = "sum",
) -> Tensor:
    """Reference of :func:`cgspn.ops.line_scan`, same arguments; differentiable any number of times.

    Computes in float32 for half precision and in the input's dtype otherwise.
    """
    direction_codes(directions)
    dtype = torch.promote_types(x.dtype, torch.float32)
    xs, logits = x.to(dtype), a.to(dtype)
    outputs = []
    for d, direction in enumerate(directions):
        h = _scan(
            _to_lines(xs, direction),
            _to_lines(logits[:, d], direction),
            None if lam is None else _to_lines(lam[:, d].to(dtype), direction),
            chunk,
            normalize,
        )
        h = _from_lines(h, direction)
        outputs.append(h if u is None else u[:, d].to(dtype) * h)
    y = torch.stack(outputs).sum(0) if reduce == "sum" else torch.stack(outputs, 1)
    return y.to(x.dtype)


def row_stochastic_ref(a: Tensor, *, directions: Sequence[str] = DIRECTIONS) -> Tensor:
    """Reference of :func:`cgspn.ops.row_stochastic`."""
    direction_codes(directions)
    dtype = torch.promote_types(a.dtype, torch.float32)
    weights = [
        _from_lines(_normalize(_to_lines(a[:, d].to(dtype), direction)), direction)
        for d, direction in enumerate(directions)
    ]
    return torch.stack(weights, 1).to(a.dtype)


def _scan(x: Tensor, a: Tensor, lam: Tensor | None, chunk: int | None, normalize: bool) -> Tensor:
    """``h_i(j) = sum_k w_i(j,k) h_{i-1}(j+k) + lam_i(j) x_i(j)``; x (S, B, C, L), a (S, B, 3, Ca, L)."""
    b = x if lam is None else lam * x
    lines: list[Tensor] = []
    for i in range(x.shape[0]):
        if i == 0 or (chunk is not None and i % chunk == 0):
            lines.append(b[i])
            continue
        w = _normalize(a[i]) if normalize else _mask_outside(a[i])
        before, here, after = w.unbind(-3)
        h = lines[-1]
        lines.append(before * _shift(h, -1) + here * h + after * _shift(h, 1) + b[i])
    return torch.stack(lines) if lines else b


def _normalize(a: Tensor) -> Tensor:
    """``w(j,k) = m(j,k) s(a(j,k)) / sum_k' m(j,k') s(a(j,k'))`` for a (..., 3, Ca, L)."""
    # Not clamp: at the bound its gradient is 1 up to torch 2.13 and 0 from 2.14 on; the kernels' is 1.
    s = _mask_outside(torch.sigmoid(torch.where(a < LOGIT_MIN, LOGIT_MIN, a)))
    return s / s.sum(-3, keepdim=True)


def _mask_outside(w: Tensor) -> Tensor:
    """Sets the entries (..., 3, Ca, L) whose neighbour is outside the line to 0."""
    k = torch.arange(-1, 2, device=w.device)[:, None, None]
    neighbour = torch.arange(w.shape[-1], device=w.device) + k
    inside = (neighbour >= 0) & (neighbour < w.shape[-1])
    return torch.where(inside, w, w.new_zeros(()))


def _shift(h: Tensor, k: int) -> Tensor:
    """``h(j+k)``, 0 outside the line."""
    return (
        torch.nn.functional.pad(h[..., :-1], (1, 0)) if k < 0 else torch.nn.functional.pad(h[..., 1:], (0, 1))
    )


def _to_lines(t: Tensor, direction: str) -> Tensor:
    """(..., H, W) to (S, ..., L), lines in scan order."""
    lines = t.movedim(-2, 0) if is_vertical(direction) else t.movedim(-1, 0)
    return lines.flip(0) if is_reversed(direction) else lines


def _from_lines(t: Tensor, direction: str) -> Tensor:
    """Inverse of :func:`_to_lines`."""
    lines = t.flip(0) if is_reversed(direction) else t
    return lines.movedim(0, -2) if is_vertical(direction) else lines.movedim(0, -1)
