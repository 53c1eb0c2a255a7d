"""What torch must know about the token-wise linear operators; their derivatives are compositions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from cgspn.ops.registration import (
    OptionalTensor,
    library_handle,
    refuse_double_backward,
    register_autocast,
    register_autograd,
)

NAMES = ("layer_norm_linear", "linear_residual", "latent_residual")


def register() -> None:
    """Registers everything; called once, after the native library has been loaded."""
    library_handle().impl("layer_norm_linear", _layer_norm_linear, "CPU")
    library_handle().impl("linear_residual", _linear_residual, "CPU")
    library_handle().impl("latent_residual", _latent_residual, "CPU")
    torch.library.register_fake("cgspn::latent_residual", _latent_residual_fake)
    register_autograd("latent_residual", refuse_double_backward("latent_residual"), None)
    torch.library.register_fake("cgspn::layer_norm_linear", _layer_norm_linear_fake)
    torch.library.register_fake("cgspn::linear_residual", _linear_residual_fake)
    register_autograd("layer_norm_linear", _layer_norm_linear_vjp, _layer_norm_linear_context)
    register_autograd("linear_residual", _linear_residual_vjp, _linear_residual_context)
    for name in NAMES:
        register_autocast(name)
    register_flop_formula([torch.ops.cgspn.layer_norm_linear])(_layer_norm_linear_flops)
    register_flop_formula([torch.ops.cgspn.linear_residual])(_linear_residual_flops)


def _layer_norm_linear(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    return F.linear(F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps), weight, bias)


def _layer_norm_linear_fake(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _layer_norm_linear_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _layer_norm_linear_vjp(ctx: Any, dy: Tensor) -> tuple[OptionalTensor, ...]:
    x, norm_weight, norm_bias, weight, _ = ctx.saved_tensors
    need_x, need_norm_weight, need_norm_bias, need_weight, need_bias, _ = ctx.needs_input_grad
    rows = dy.flatten(0, -2)
    # The norm's output is made again instead of being kept, which is most of what the layer would keep.
    normed, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], norm_weight, norm_bias, ctx.eps)
    dweight = rows.T @ normed.flatten(0, -2) if need_weight else None
    del normed
    dx = dnorm_weight = dnorm_bias = None
    if need_x or need_norm_weight or need_norm_bias:
        dx, dnorm_weight, dnorm_bias = torch.ops.aten.native_layer_norm_backward(
            dy @ weight,
            x,
            x.shape[-1:],
            mean,
            rstd,
            norm_weight,
            norm_bias,
            [need_x, need_norm_weight, need_norm_bias],
        )
    return dx, dnorm_weight, dnorm_bias, dweight, rows.sum(0) if need_bias else None, None


def _layer_norm_linear_flops(x_shape: torch.Size, *shapes: Any, out_shape: torch.Size, **kwargs: Any) -> int:
    return 2 * out_shape.numel() * x_shape[-1]


def _linear_residual(h: Tensor, weight: Tensor, bias: Tensor, scale: OptionalTensor, x: Tensor) -> Tensor:
    y = F.linear(h, weight, bias)
    return x + (y if scale is None else y * scale)


def _linear_residual_fake(
    h: Tensor, weight: Tensor, bias: Tensor, scale: OptionalTensor, x: Tensor
) -> Tensor:
    return x.new_empty(x.shape)


def _latent_residual(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    down_weight: Tensor,
    down_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    scale: OptionalTensor,
    eps: float,
    directions: Sequence[int],
    chunk: int | None,
) -> Tensor:
    """The sub-layer in inference; its derivative would keep what the operators one by one keep."""
    latent = _layer_norm_linear(x, norm_weight, norm_bias, down_weight, down_bias, eps).permute(0, 3, 1, 2)
    mixed = torch.ops.cgspn.latent_propagation(latent, weight, bias, directions, chunk)
    return _linear_residual(mixed.permute(0, 2, 3, 1), up_weight, up_bias, scale, x)


def _latent_residual_fake(x: Tensor, *args: Any) -> Tensor:
    return x.new_empty(x.shape)


def _linear_residual_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])


def _linear_residual_vjp(ctx: Any, dy: Tensor) -> tuple[OptionalTensor, ...]:
    h, weight, bias, scale = ctx.saved_tensors
    need_h, need_weight, need_bias, need_scale, need_x = ctx.needs_input_grad
    dscale = None
    if need_scale:
        dscale = (dy * F.linear(h, weight, bias)).flatten(0, -2).sum(0)
    dbranch = dy if scale is None else dy * scale
    rows = dbranch.flatten(0, -2)
    return (
        dbranch @ weight if need_h else None,
        rows.T @ h.flatten(0, -2) if need_weight else None,
        rows.sum(0) if need_bias else None,
        dscale,
        dy if need_x else None,
    )


def _linear_residual_flops(h_shape: torch.Size, *shapes: Any, out_shape: torch.Size, **kwargs: Any) -> int:
    return 2 * out_shape.numel() * h_shape[-1]
