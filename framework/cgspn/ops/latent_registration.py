"""What torch must know about latent propagation, and its backward pass composed of other operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from cgspn.ops.layout import pad_logits, strides_like
from cgspn.ops.registration import (
    OptionalTensor,
    absent,
    empty_like,
    library_handle,
    line_scan_flops,
    refuse_double_backward,
    register_autocast,
    register_autograd,
)

NAMES = ("latent_propagation", "latent_propagation_backward", "latent_scan_backward")
# Bytes of parameters that the backward pass holds at a time, for whole images: it is memory that training
# would otherwise not need, and enough to fill any device.
PARAMETER_BYTES = 2**29
ONES = 8


def register() -> None:
    """Registers everything; called once, after the native library has been loaded."""
    for device in ("CPU", "CUDA"):
        library_handle().impl("latent_propagation_backward", _backward, device)
    torch.library.register_fake("cgspn::latent_propagation", _fake)
    torch.library.register_fake("cgspn::latent_propagation_backward", _backward_fake)
    register_autograd("latent_propagation", _vjp, _context)
    refuse = refuse_double_backward("latent_propagation_backward")
    register_autograd("latent_propagation_backward", refuse, None)
    register_autocast("latent_propagation")
    torch.library.register_fake("cgspn::latent_scan_backward", _scan_backward_fake)
    for name in ("latent_propagation", "latent_propagation_backward"):
        torch.library.register_vmap(f"cgspn::{name}", _loop(getattr(torch.ops.cgspn, name)))
    register_flop_formula([torch.ops.cgspn.latent_propagation])(_flops)
    register_flop_formula([torch.ops.cgspn.latent_propagation_backward])(_backward_flops)


def _fake(x: Tensor, weight: Tensor, bias: Tensor, directions: Sequence[int], chunk: int | None) -> Tensor:
    return empty_like(x)


def _backward_fake(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    directions: Sequence[int],
    chunk: int | None,
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dweight, dbias = (
        empty_like(t) if needed else absent(x)
        for t, needed in zip((x, weight, bias), output_mask, strict=True)
    )
    return dx, dweight, dbias


def _scan_backward_fake(
    dy: Tensor, x: Tensor, p: Tensor, directions: Sequence[int], chunk: int | None
) -> tuple[Tensor, Tensor]:
    return empty_like(x), p.new_empty(p.shape)


def _backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    directions: Sequence[int],
    chunk: int | None,
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Makes the parameters again, some images at a time, and goes back through the scan and the layer.

    Stored in the dtype of ``x``: the parameters, their gradients, the states, the scan's share of dx and, but
    on CUDA, the weight's gradient of some images. Sums over images are made in float32 (float64), in their
    order.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    dx = empty_like(x) if output_mask[0] else absent(x)
    # Kernels are chosen by strides: one layout for every dy, else the gradient of a sum, expanded from one
    # element, would be rounded otherwise than the same values laid out as y.
    if dy.stride() != strides_like(x):
        dy = empty_like(x).copy_(dy)
    batch, channels, height, width = x.shape
    logits, padding = 3 * len(directions), 0
    padded_weight, padded_bias = weight, bias
    if x.is_cuda and weight.shape[0] == logits + 2 * len(directions) * channels:
        padded_weight, padded_bias, padding = pad_logits(weight, bias, len(directions))
    # Of the weight, and of the bias as if it multiplied ones; more columns of them so that rows stay aligned.
    gradient = torch.zeros((weight.shape[0] + padding, channels + ONES), dtype=wide, device=x.device)
    image_bytes = height * width * weight.shape[0] * x.element_size()
    parts = math.ceil(batch / max(1, PARAMETER_BYTES // max(1, image_bytes)))
    images = max(1, math.ceil(batch / max(1, parts)))  # equal parts: a small last one would leave much idle
    for first in range(0, batch if x.numel() else 0, images):
        part = slice(first, first + images)
        pixels = x[part].permute(0, 2, 3, 1)
        p = torch.nn.functional.linear(pixels, padded_weight, padded_bias)
        dscan, dp = torch.ops.cgspn.latent_scan_backward(dy[part], x[part], p, directions, chunk)
        del p
        rows = dp.flatten(0, 2)
        rows[:, logits : logits + padding] = 0
        if output_mask[0]:
            target = dx[part].permute(0, 2, 3, 1)
            through_scan = dscan.permute(0, 2, 3, 1).flatten(0, 2)
            if target.is_contiguous():
                torch.addmm(through_scan, rows, padded_weight, out=target.view(through_scan.shape))
            else:
                target.copy_(torch.addmm(through_scan, rows, padded_weight).view_as(target))
        if output_mask[1] or output_mask[2]:
            factors = torch.nn.functional.pad(pixels.flatten(0, 2), (0, ONES), value=1.0)
            gradient += _product(rows.T, factors, wide)
    if padding:
        gradient = torch.cat((gradient[:logits], gradient[logits + padding :]))
    dweight, dbias = gradient[:, :channels], gradient[:, channels]
    wanted = ((weight, dweight, output_mask[1]), (bias, dbias, output_mask[2]))
    narrow = [empty_like(t).copy_(grad) if needed else absent(x) for t, grad, needed in wanted]
    return dx, narrow[0], narrow[1]


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """``a @ b``, on CUDA in the dtype that it is summed in."""
    return torch.mm(a, b, out_dtype=dtype) if a.is_cuda and a.dtype != dtype else a @ b


def _context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.directions, ctx.chunk = inputs
    ctx.save_for_backward(x, weight, bias)


def _vjp(ctx: Any, dy: Tensor) -> tuple[OptionalTensor, ...]:
    mask = list(ctx.needs_input_grad[:3])
    grads = torch.ops.cgspn.latent_propagation_backward(
        dy, *ctx.saved_tensors, ctx.directions, ctx.chunk, mask
    )
    return (*(grad if needed else None for grad, needed in zip(grads, mask, strict=True)), None, None)


def _loop(op: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """A vmap rule for any mapped argument: one call an entry, since the weight may be mapped too."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        def entry(i: int) -> list[Any]:
            mapped = zip(args, in_dims, strict=True)
            return [a.select(d, i) if isinstance(a, Tensor) and d is not None else a for a, d in mapped]

        outputs = [op(*entry(i)) for i in range(info.batch_size)]
        if isinstance(outputs[0], Tensor):
            return torch.stack(outputs), 0
        return tuple(map(torch.stack, zip(*outputs, strict=True))), (0,) * len(outputs[0])

    return rule


def _flops(
    x_shape: torch.Size, weight_shape: torch.Size, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    """Those of the linear layer and of the line scan."""
    batch, channels, height, width = x_shape
    rows, num = weight_shape[0], len(args[1])
    affinity_channels = channels if rows == 5 * num * channels else 1
    scan = line_scan_flops(x_shape, torch.Size((batch, num, 3, affinity_channels, height, width)))
    return 2 * batch * height * width * rows * channels + scan


def _backward_flops(
    dy_shape: torch.Size,
    x_shape: torch.Size,
    weight_shape: torch.Size,
    *args: Any,
    out_shape: Any = None,
    **kwargs: Any,
) -> int:
    """The forward pass again, then twice as much: every product has two factors."""
    return 3 * _flops(x_shape, weight_shape, *args)
