"""The token-wise linear layers around a propagation in a narrow space, fused with what surrounds them."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from cgspn.ops import library
from cgspn.ops.checks import check_linear, check_tensors, rows_of
from cgspn.ops.choice import Choice

CHOICE = Choice("token-wise linear", "CGSPN_TOKEN_LINEAR")
CONDITIONS = "CUDA, bfloat16, a wide side that is a multiple of 64, a narrow one of 16, 32, 48 or 64"
WIDTHS = (16, 32, 48, 64)
COLUMNS = 64
# Shared memory that both kernels take beside their weight: the rings of a block's warps, and rounding.
RING_BYTES = 12 * 3 * 16 * 128 + 128


def layer_norm_linear(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """``linear(layer_norm(x))`` to few channels, with x read once where the fused kernel runs.

    Args:
        x: Shape (..., C).
        norm_weight: Shape (C,), as ``norm_bias``.
        norm_bias: See ``norm_weight``.
        weight: Shape (C_c, C).
        bias: Shape (C_c,).
        eps: Added to the variance.

    Returns:
        Shape (..., C_c).
    """
    tensors = (x, norm_weight, norm_bias, weight, bias)
    check_tensors(x=x, norm_weight=norm_weight, norm_bias=norm_bias, weight=weight, bias=bias)
    width = x.shape[-1] if x.dim() else 0
    check_linear(
        "x",
        x,
        weight,
        norm_weight=(norm_weight, width),
        norm_bias=(norm_bias, width),
        bias=(bias, rows_of(weight)),
    )
    if CHOICE.fused(obstacle(x, weight.shape[0], tensors)):
        return torch.ops.cgspn.layer_norm_linear(*tensors, eps)
    return F.linear(F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps), weight, bias)


def linear_residual(
    h: Tensor, weight: Tensor, bias: Tensor, x: Tensor, scale: Tensor | None = None
) -> Tensor:
    """``x + scale * linear(h)`` from few channels, with x read and the result written once.

    Args:
        h: Shape (..., C_c).
        weight: Shape (C, C_c).
        bias: Shape (C,).
        x: Shape (..., C).
        scale: Shape (C,), LayerScale; None means 1.

    Returns:
        Shape (..., C).
    """
    tensors = (x, h, weight, bias, *(() if scale is None else (scale,)))
    check_tensors(h=h, weight=weight, bias=bias, x=x, **({} if scale is None else {"scale": scale}))
    check_linear("h", h, weight, bias=(bias, rows_of(weight)), scale=(scale, rows_of(weight)))
    if x.shape != (*h.shape[:-1], weight.shape[0]):
        raise ValueError(
            f"x must have shape {(*h.shape[:-1], weight.shape[0])} for h of {tuple(h.shape)}, "
            f"got {tuple(x.shape)}."
        )
    if CHOICE.fused(obstacle(x, weight.shape[1], tensors)):
        return torch.ops.cgspn.linear_residual(h, weight, bias, scale, x)
    y = F.linear(h, weight, bias)
    return x + (y if scale is None else y * scale)


def obstacle(x: Tensor, width: int, tensors: tuple[Tensor, ...]) -> str:
    """Why the fused kernels cannot run on ``tensors`` with ``width`` channels on the narrow side, or ''."""
    channels = x.shape[-1]
    if x.device.type != "cuda":
        return f"x is on {x.device.type}, not on cuda"
    if not library.active(x.device):
        return f"the CUDA kernels are not active ({library.STATUS['cuda'].reason})"
    autocast = torch.is_autocast_enabled("cuda")
    if x.dtype != torch.bfloat16:
        return f"x is {x.dtype}, not bfloat16"
    if autocast and x.dtype != torch.get_autocast_dtype("cuda"):
        return f"x is {x.dtype}, autocast goes to {torch.get_autocast_dtype('cuda')}"
    if width not in WIDTHS or channels % COLUMNS:
        return f"the widths are {channels} and {width}, not a multiple of {COLUMNS} and one of {WIDTHS}"
    # The weight of either kernel, its rows padded to keep them in different banks, and two float32 vectors.
    padding = 0 if width == COLUMNS else 16
    needed = max(width * (2 * channels + 16 + 8), channels * (2 * width + padding + 8))
    if needed + RING_BYTES > _shared_memory(x.device.index):
        return f"the weight ({channels}, {width}) does not fit into a block's shared memory"
    # Dynamo cannot trace offsets; the kernel itself refuses what is not aligned.
    known = not torch.compiler.is_compiling()
    for tensor in tensors:
        if not tensor.is_contiguous() or (known and tensor.storage_offset() % 8):
            return f"a tensor of shape {tuple(tensor.shape)} is not contiguous or not aligned to 16 bytes"
        if tensor.dtype != x.dtype and not autocast:
            return f"a tensor has dtype {tensor.dtype}, x has {x.dtype}"
    return ""


@functools.cache
@torch.compiler.assume_constant_result
def _shared_memory(device: int) -> int:
    """Bytes of shared memory that a block of this device may use."""
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block)
