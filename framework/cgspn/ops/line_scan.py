"""Line-scan propagation: the public function and what torch must know about its native operators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cgspn.ops import library
from cgspn.ops.checks import check_chunk, check_tensors
from cgspn.ops.directions import DIRECTIONS, direction_codes
from cgspn.ops.reference import line_scan_ref

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
REDUCTIONS = ("sum", "none")


def line_scan(
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
    """Propagates ``x`` line by line in D directions, gates the results and sums them.

    With scan line i and position j on it, for every direction d::

        w_i(j,k) = s(a_i(j,k)) / sum_k' s(a_i(j,k'))          s(a) = sigmoid(max(a, -40))
        h_i(j)   = sum_k w_i(j,k) h_{i-1}(j+k) + lam_i(j) x_i(j)
        y        = sum_d u_d h_d

    where k runs over the neighbours -1, 0, 1 that lie on the line. State and sums are accumulated in
    float32 (float64 for float64) and rounded once. Inputs may have any strides; none is copied.

    Args:
        x: Input, shape (B, C, H, W), float16, bfloat16, float32 or float64.
        a: Affinity logits, shape (B, D, 3, Ca, H, W), Ca in {1, C}; the axis of size 3 is the neighbour
            j-1, j, j+1 in ascending image coordinate for every direction.
        lam: Input gate, shape (B, D, C, H, W), unitless; None means 1.
        u: Output gate, shape (B, D, C, H, W), unitless; None means 1.
        directions: D distinct names out of ``tb``, ``bt``, ``lr``, ``rl``.
        chunk: Lines per independent segment, counted from each direction's first line; it need not
            divide the extent. None scans the whole extent.
        normalize: Whether ``a`` holds logits; else it holds the weights w, whose entries that point
            outside the line are ignored.
        reduce: ``sum`` adds the directions, ``none`` returns them one by one.

    Returns:
        Shape (B, C, H, W), or (B, D, C, H, W) with ``reduce="none"``; dtype of ``x``; strides of ``x``
        where it is dense, else channels-last.

    Raises:
        ValueError: If a shape, dtype, device, direction, chunk or reduction is not valid.
        RuntimeError: Under double backward, ``torch.func.grad`` and forward-mode differentiation.

    Source: GSPN, arXiv:2501.12381, equations 1-3; C-GSPN, arXiv:2606.00746.
    """
    codes = _check(x, a, lam, u, directions, normalize, reduce)
    chunk = check_chunk(chunk)
    if not library.active(x.device):
        return line_scan_ref(
            x, a, lam, u, directions=directions, chunk=chunk, normalize=normalize, reduce=reduce
        )
    save_state = torch.is_grad_enabled() and (a.requires_grad or (u is not None and u.requires_grad))
    arguments = (x, a, lam, u, codes, chunk, normalize, reduce == "sum", save_state)
    if _nothing_to_differentiate(x, a, lam, u):
        # The derivative's Python would take as long on the host as the rest of the call.
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.cgspn.line_scan.default(*arguments)[0]
    return torch.ops.cgspn.line_scan(*arguments)[0]


def _nothing_to_differentiate(*tensors: Tensor | None) -> bool:
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if forward_ad._current_level >= 0:
        return False
    return not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors))


def _check(
    x: Tensor,
    a: Tensor,
    lam: Tensor | None,
    u: Tensor | None,
    directions: Sequence[str],
    normalize: bool,
    reduce: str,
) -> list[int]:
    check_tensors(x=x, a=a, **{k: t for k, t in (("lam", lam), ("u", u)) if t is not None})
    codes = direction_codes(directions)
    if x.dim() != 4:
        raise ValueError(f"x must have shape (B, C, H, W), got {tuple(x.shape)}.")
    if x.dtype not in DTYPES:
        raise ValueError(f"x must be one of {', '.join(map(str, DTYPES))}, got {x.dtype}.")
    batch, channels, height, width = x.shape
    gate = (batch, len(codes), channels, height, width)
    if a.dim() != 6 or a.shape[3] not in (1, channels):
        raise ValueError(
            f"a must have shape (B, D, 3, Ca, H, W) with Ca 1 or {channels}, got {tuple(a.shape)}."
        )
    shapes = {"a": (a, (*gate[:2], 3, a.shape[3], *gate[3:])), "lam": (lam, gate), "u": (u, gate)}
    for name, (tensor, shape) in shapes.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} must have shape {shape} for x of {tuple(x.shape)}, got {tuple(tensor.shape)}."
            )
        if tensor.device != x.device:
            raise ValueError(f"{name} must be on {x.device} as x is, got {tensor.device}.")
        if tensor.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"{name} must have the dtype of x, {x.dtype}, got {tensor.dtype}.")
    if not isinstance(normalize, bool):
        raise ValueError(f"normalize must be True or False, got {normalize!r}.")
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce must be one of {', '.join(REDUCTIONS)}; got {reduce!r}.")
    return codes
