"""What torch must know about latent propagation, and its backward pass composed of other operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from cgspn.ops.registration import (
    OptionalTensor,
    _absent,
    _library,
    _like,
    _line_scan_flops,
    _refuse_double_backward,
    _register_autocast,
    _register_autograd,
)

NAMES = ("latent_propagation", "latent_propagation_backward", "latent_scan_backward")
# Bytes of parameters that the backward pass holds at a time, for whole images: it is memory that training
# would otherwise not need, and enough to fill any device.
PARAMETER_BYTES = 2**29


def register() -> None:
    """Registers everything; called once, after the native library has been loaded."""
    for device in ("CPU", "CUDA"):
        _library().impl("latent_propagation_backward", _backward, device)
    torch.library.register_fake("cgspn::latent_propagation", _fake)
    torch.library.register_fake("cgspn::latent_propagation_backward", _backward_fake)
    _register_autograd("latent_propagation", _vjp, _context)
    refuse = _refuse_double_backward("latent_propagation_backward")
    _register_autograd("latent_propagation_backward", refuse, None)
    _register_autocast("latent_propagation")
    torch.library.register_fake("cgspn::latent_scan_backward", _scan_backward_fake)
    for name in ("latent_propagation", "latent_propagation_backward"):
        torch.library.register_vmap(f"cgspn::{name}", _loop(getattr(torch.ops.cgspn, name)))
    register_flop_formula([torch.ops.cgspn.latent_propagation])(_flops)
    register_flop_formula([torch.ops.cgspn.latent_propagation_backward])(_backward_flops)


def _fake(x: Tensor, weight: Tensor, bias: Tensor, directions: Sequence[int], chunk: int | None) -> Tensor:
    return _like(x)


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
        _like(t) if needed else _absent(x) for t, needed in zip((x, weight, bias), output_mask, strict=True)
    )
    return dx, dweight, dbias


def _scan_backward_fake(
    dy: Tensor, x: Tensor, p: Tensor, directions: Sequence[int], chunk: int | None
) -> tuple[Tensor, Tensor]:
    return _like(x), p.new_empty(p.shape)


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

    Stored in the dtype of ``x``: the parameters, their gradients, the states, the scan's share of dx and the
    weight's gradient of some images. Sums over images are made in float32 (float64), in their order.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    dx = _like(x) if output_mask[0] else _absent(x)
    dweight = torch.zeros(weight.shape, dtype=wide, device=x.device)
    dbias = torch.zeros(bias.shape, dtype=wide, device=x.device)
    batch, _, height, width = x.shape
    image_bytes = height * width * weight.shape[0] * x.element_size()
    images = max(1, PARAMETER_BYTES // max(1, image_bytes))
    for first in range(0, batch if x.numel() else 0, images):
        part = slice(first, first + images)
        pixels = x[part].permute(0, 2, 3, 1)
        p = torch.nn.functional.linear(pixels, weight, bias)
        dscan, dp = torch.ops.cgspn.latent_scan_backward(dy[part], x[part], p, directions, chunk)
        del p
        if output_mask[0]:
            torch.add(dscan, (dp @ weight).permute(0, 3, 1, 2), out=dx[part])
        rows = dp.flatten(0, 2)
        if output_mask[1]:
            dweight += rows.T @ pixels.flatten(0, 2)
        if output_mask[2]:
            dbias += rows.sum(0, dtype=wide)
    wanted = ((weight, dweight, output_mask[1]), (bias, dbias, output_mask[2]))
    narrow = [_like(t).copy_(grad) if needed else _absent(x) for t, grad, needed in wanted]
    return dx, narrow[0], narrow[1]


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
    scan = _line_scan_flops(x_shape, torch.Size((batch, num, 3, affinity_channels, height, width)))
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
