"""Latent propagation: a line scan whose logits and gates are a linear function of its own input."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cgspn.ops import library
from cgspn.ops.checks import check_chunk, check_tensors
from cgspn.ops.directions import DIRECTIONS, direction_codes
from cgspn.ops.line_scan import DTYPES, line_scan

log = logging.getLogger(__name__)

BACKEND = "CGSPN_LATENT"
BACKENDS = ("auto", "fused", "unfused")
FUSED_CHANNELS = (32, 48, 64)
FUSED_DTYPES = (torch.float16, torch.bfloat16)


def latent_propagation(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    directions: Sequence[str] = DIRECTIONS,
    chunk: int | None = None,
) -> Tensor:
    """Propagates ``x`` with logits and gates that a linear layer makes of ``x``.

    With p = weight x + bias at every pixel and the views ``a, lam, u = split_parameters(p, ...)``, this is
    ``line_scan(x, a, lam, u, directions=directions, chunk=chunk)``. On CUDA one kernel makes p by
    tensor-core products where the scan uses it, and only ``y`` is rounded; its conditions are those of
    :func:`fused_obstacle`, 16-byte aligned channels-last tensors, and lines of at most 768 positions at 64
    and 48 channels, 832 at 32. Everywhere else p is computed and stored in the dtype of ``x``. The
    backward pass computes p again instead of keeping it.

    Args:
        x: Input, shape (B, C, H, W), float16, bfloat16, float32 or float64.
        weight: Shape (5 D C, C), rows ``[a (D, 3, C) | lam (D, C) | u (D, C)]``; or (D (3 + 2 C), C), where
            all channels share the affinity.
        bias: One value a row of ``weight``.
        directions: D distinct names out of ``tb``, ``bt``, ``lr``, ``rl``.
        chunk: Lines per independent segment, as in :func:`cgspn.ops.line_scan`.

    Returns:
        Shape and dtype of ``x``; strides of ``x`` where it is dense, else channels-last.

    Raises:
        ValueError: If a shape, dtype, device, direction or chunk is not valid.
        RuntimeError: Under double backward, ``torch.func.grad`` and forward-mode differentiation.

    Source: C-GSPN, arXiv:2606.00746, for the linear layer; the fusion is this project's.
    """
    codes, affinity_channels = _check(x, weight, bias, directions)
    chunk = check_chunk(chunk)
    if library.active(x.device):
        return torch.ops.cgspn.latent_propagation(x, weight, bias, codes, chunk)
    p = torch.nn.functional.linear(x.permute(0, 2, 3, 1), weight, bias)
    a, lam, u = split_parameters(p, len(codes), affinity_channels)
    return line_scan(x.to(p.dtype), a, lam, u, directions=directions, chunk=chunk)


def split_parameters(
    p: Tensor, num_directions: int, affinity_channels: int, padding: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Views of a linear layer's rows as a line scan's parameters.

    Args:
        p: Shape (B, H, W, rows), rows ``[a (D, 3, Ca) | lam (D, C) | u (D, C)]``.
        num_directions: D.
        affinity_channels: Ca, 1 or C.
        padding: Unused rows between ``a`` and ``lam``, see :func:`cgspn.ops.layout.pad_logits`.

    Returns:
        ``a`` (B, D, 3, Ca, H, W), ``lam`` and ``u`` (B, D, C, H, W).
    """
    logits = 3 * num_directions * affinity_channels
    gates = (p.shape[-1] - logits - padding) // 2
    a, _, lam, u = p.split((logits, padding, gates, gates), dim=-1)
    a = a.unflatten(-1, (num_directions, 3, affinity_channels)).permute(0, 3, 4, 5, 1, 2)
    lam, u = (
        g.unflatten(-1, (num_directions, gates // num_directions)).permute(0, 3, 4, 1, 2) for g in (lam, u)
    )
    return a, lam, u


def fused_obstacle(x: Tensor, weight: Tensor) -> str:
    """Why the fused kernel does not take these tensors, in a few words; empty if it does.

    Sizes of the picture play no part, so that compiled code serves all of them.
    """
    device = x.device.type
    if device != "cuda":
        return f"the device is {device}"
    if not library.STATUS["cuda"].active:
        return f"no native kernels: {library.STATUS['cuda'].reason}"
    if _capability(x.device) < (9, 0):
        return f"compute capability {_capability(x.device)} is below (9, 0)"
    autocast = torch.is_autocast_enabled("cuda")
    dtypes = {torch.get_autocast_dtype("cuda")} if autocast else {x.dtype, weight.dtype}
    if len(dtypes) > 1 or not dtypes <= set(FUSED_DTYPES):
        return f"the dtype is {', '.join(sorted(map(str, dtypes)))}, not float16 or bfloat16"
    if weight.shape[1] not in FUSED_CHANNELS:
        return f"{weight.shape[1]} channels, not one of {', '.join(map(str, FUSED_CHANNELS))}"
    return ""


def use_latent_propagation(x: Tensor, weight: Tensor) -> bool:
    """Whether a module runs ``latent_propagation`` instead of a linear layer and ``line_scan``.

    The choice follows ``CGSPN_LATENT`` (``auto``: where the fused kernel takes the tensors; ``fused``:
    always; ``unfused``: never) or :func:`latent_backend`, and is logged once for every reason.
    """
    obstacle = fused_obstacle(x, weight)
    fused = _backend == "fused" or (_backend == "auto" and not obstacle)
    if not torch.compiler.is_compiling():
        _log_choice(_backend, fused, obstacle)
    return fused


@contextlib.contextmanager
def latent_backend(name: str) -> Iterator[None]:
    """Chooses ``auto``, ``fused`` or ``unfused`` inside a ``with`` block."""
    global _backend
    before, _backend = _backend, _checked(name)
    try:
        yield
    finally:
        _backend = before


def latent_backend_report() -> str:
    """What ``CGSPN_LATENT`` chooses on this machine, for ``python -m cgspn.env``."""
    if _backend != "auto":
        return f"{_backend} ({BACKEND})"
    if not library.STATUS["cuda"].active:
        return f"auto: unfused, {library.STATUS['cuda'].reason}"
    channels = ", ".join(map(str, FUSED_CHANNELS))
    return (
        f"auto: fused on CUDA, compute capability 9.0, float16 or bfloat16, {channels} channels; else unfused"
    )


@functools.cache
def _log_choice(backend: str, fused: bool, obstacle: str) -> None:
    log.info(
        "latent propagation runs %s (%s=%s)%s",
        "fused" if fused else "unfused",
        BACKEND,
        backend,
        f": {obstacle}" if obstacle else "",
    )


@functools.cache
@torch.compiler.assume_constant_result
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _checked(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{BACKEND}={name} is unknown; valid: {', '.join(BACKENDS)}.")
    return name


_backend = _checked(os.environ.get(BACKEND, "auto"))


def _check(x: Tensor, weight: Tensor, bias: Tensor, directions: Sequence[str]) -> tuple[list[int], int]:
    check_tensors(x=x, weight=weight, bias=bias)
    codes = direction_codes(directions)
    if x.dim() != 4:
        raise ValueError(f"x must have shape (B, C, H, W), got {tuple(x.shape)}.")
    if x.dtype not in DTYPES:
        raise ValueError(f"x must be one of {', '.join(map(str, DTYPES))}, got {x.dtype}.")
    channels, num = x.shape[1], len(codes)
    per_channel, shared = 5 * num * channels, num * (3 + 2 * channels)
    rows = weight.shape[0] if weight.dim() == 2 else -1
    if rows not in (per_channel, shared) or weight.shape[1] != channels:
        raise ValueError(
            f"weight must have shape ({per_channel}, {channels}), or ({shared}, {channels}) with a shared "
            f"affinity, for {num} directions of x of {tuple(x.shape)}; got {tuple(weight.shape)}."
        )
    if tuple(bias.shape) != (rows,):
        raise ValueError(f"bias must have shape ({rows},) as weight has rows, got {tuple(bias.shape)}.")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.device != x.device:
            raise ValueError(f"{name} must be on {x.device} as x is, got {tensor.device}.")
        if tensor.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"{name} must have the dtype of x, {x.dtype}, got {tensor.dtype}.")
    return codes, channels if rows == per_channel else 1
