"""What torch must know about the native operators: fake kernels, derivatives, autocast, vmap, FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._library.autograd import Info, make_autograd_impl
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from cgspn.ops.layout import state_strides, strides_like, unsummed_strides

OptionalTensor = Tensor | None
NAMES = ("line_scan", "line_scan_backward", "row_stochastic", "row_stochastic_backward")


def register() -> None:
    """Registers everything; called once, after the native library has been loaded."""
    for name, fake in (
        ("line_scan", _line_scan_fake),
        ("line_scan_backward", _line_scan_backward_fake),
        ("row_stochastic", _row_stochastic_fake),
        ("row_stochastic_backward", _row_stochastic_backward_fake),
    ):
        torch.library.register_fake(f"cgspn::{name}", fake)
    register_autograd("line_scan", _line_scan_vjp, _line_scan_context)
    register_autograd("row_stochastic", _row_stochastic_vjp, _row_stochastic_context)
    for name in ("line_scan_backward", "row_stochastic_backward"):
        register_autograd(name, refuse_double_backward(name), None)
    for name in ("line_scan", "row_stochastic"):
        register_autocast(name)
    for name, num_tensors in zip(NAMES, (4, 6, 1, 2), strict=True):
        torch.library.register_vmap(f"cgspn::{name}", _vmap_rule(name, num_tensors))
    register_flop_formula([torch.ops.cgspn.line_scan])(line_scan_flops)
    register_flop_formula([torch.ops.cgspn.line_scan_backward])(_line_scan_backward_flops)


def empty_like(t: Tensor) -> Tensor:
    """An output of the shape of ``t``, laid out by the rule of ``layout.py``."""
    return t.new_empty_strided(t.shape, strides_like(t))


def absent(t: Tensor) -> Tensor:
    """The output, of shape (0,), that stands for one that was not asked for."""
    return t.new_empty(0)


def _line_scan_fake(
    x: Tensor,
    a: Tensor,
    lam: OptionalTensor,
    u: OptionalTensor,
    directions: Sequence[int],
    chunk: int | None,
    normalize: bool,
    sum: bool,
    save_state: bool,
) -> tuple[Tensor, Tensor]:
    batch, channels, height, width = x.shape
    gate = (batch, len(directions), channels, height, width)
    y = empty_like(x) if sum else x.new_empty_strided(gate, unsummed_strides(x, len(directions)))
    state = x.new_empty_strided(gate, state_strides(x)) if save_state else absent(x)
    return y, state


def _line_scan_backward_fake(
    dy: Tensor,
    x: Tensor,
    a: Tensor,
    lam: OptionalTensor,
    u: OptionalTensor,
    state: OptionalTensor,
    directions: Sequence[int],
    chunk: int | None,
    normalize: bool,
    sum: bool,
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx, da, dlam, du = (
        empty_like(t) if needed and t is not None else absent(x)
        for t, needed in zip((x, a, lam, u), output_mask, strict=True)
    )
    return dx, da, dlam, du


def _row_stochastic_fake(a: Tensor, directions: Sequence[int]) -> Tensor:
    return empty_like(a)


def _row_stochastic_backward_fake(dw: Tensor, a: Tensor, directions: Sequence[int]) -> Tensor:
    return empty_like(a)


def _line_scan_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, a, lam, u, ctx.directions, ctx.chunk, ctx.normalize, ctx.sum, save_state = inputs
    state = output[1]
    ctx.mark_non_differentiable(state)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, a, lam, u, state if save_state else None)


def _line_scan_vjp(ctx: Any, dy: OptionalTensor, dstate: None) -> tuple[OptionalTensor, ...]:
    options = (None,) * 5
    if dy is None:
        return (None, None, None, None, *options)
    x, a, lam, u, state = ctx.saved_tensors
    mask = list(ctx.needs_input_grad[:4])
    grads = torch.ops.cgspn.line_scan_backward(
        dy, x, a, lam, u, state, ctx.directions, ctx.chunk, ctx.normalize, ctx.sum, mask
    )
    return (*(grad if needed else None for grad, needed in zip(grads, mask, strict=True)), *options)


def _row_stochastic_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, ctx.directions = inputs
    ctx.save_for_backward(a)


def _row_stochastic_vjp(ctx: Any, dw: Tensor) -> tuple[Tensor, None]:
    (a,) = ctx.saved_tensors
    return torch.ops.cgspn.row_stochastic_backward(dw, a, ctx.directions), None


def register_autograd(name: str, vjp: Callable[..., Any], setup_context: Callable[..., None] | None) -> None:
    """As ``torch.library.register_autograd``, but forward mode and ``torch.func`` raise.

    Left alone, forward mode drops the tangents silently.
    """
    kernel = make_autograd_impl(getattr(torch.ops.cgspn, name).default, Info(vjp, setup_context))

    def checked(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if forward_ad._current_level >= 0 and any(
            forward_ad.unpack_dual(t).tangent is not None for t in tensors
        ):
            raise RuntimeError(f"cgspn::{name} does not support forward-mode differentiation (jvp).")
        if torch._C._are_functorch_transforms_active() and any(t.requires_grad for t in tensors):
            raise RuntimeError(
                f"cgspn::{name} does not support torch.func.grad and its relatives; use torch.autograd."
            )
        return kernel(keyset, *args, **kwargs)

    library_handle().impl(name, checked, "Autograd", with_keyset=True)


def refuse_double_backward(name: str) -> Callable[..., NoReturn]:
    """A derivative that raises, for operators which have none."""

    def refuse(ctx: Any, *grads: Tensor) -> NoReturn:
        raise RuntimeError(f"cgspn::{name} has no derivative: double backward is not supported.")

    return refuse


def register_autocast(name: str) -> None:
    """Casts floating inputs to the autocast dtype; float64 stays, as in torch's own operators."""
    op = getattr(torch.ops.cgspn, name).default
    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):

        def kernel(_: Any, *args: Any, device: str = device, key: str = key) -> Any:
            dtype = torch.get_autocast_dtype(device)
            with torch._C._ExcludeDispatchKeyGuard(
                torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
            ):
                return op(*(_autocast(arg, device, dtype) for arg in args))

        library_handle().impl(name, kernel, key, with_keyset=True)


def _autocast(arg: Any, device: str, dtype: torch.dtype) -> Any:
    if isinstance(arg, Tensor) and arg.is_floating_point() and arg.device.type == device:
        return arg if arg.dtype == torch.float64 else arg.to(dtype)
    return arg


_LIBRARIES: list[torch.library.Library] = []


def library_handle() -> torch.library.Library:
    """The handle whose registrations last as long as the process."""
    if not _LIBRARIES:
        _LIBRARIES.append(torch.library.Library("cgspn", "FRAGMENT"))
    return _LIBRARIES[0]


def _fold(tensor: OptionalTensor, dim: int | None, size: int) -> OptionalTensor:
    """Moves a vmapped axis into the batch axis."""
    if tensor is None:
        return None
    batched = tensor.unsqueeze(0).expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return batched.flatten(0, 1)


def _vmap_rule(name: str, num_tensors: int) -> Callable[..., tuple[Any, Any]]:
    """Folds the mapped axis into the batch axis of the first ``num_tensors`` arguments, all tensors."""
    op = getattr(torch.ops.cgspn, name)

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        size = info.batch_size
        tensors = [_fold(t, dim, size) for t, dim in zip(args[:num_tensors], in_dims, strict=False)]
        output = op(*tensors, *args[num_tensors:])
        if isinstance(output, Tensor):
            return output.unflatten(0, (size, -1)), 0
        # Absent outputs, of shape (0,), have no batch axis.
        folded = [out.dim() > 1 for out in output]
        unfolded = (out.unflatten(0, (size, -1)) if f else out for out, f in zip(output, folded, strict=True))
        return tuple(unfolded), tuple(0 if f else None for f in folded)

    return rule


def line_scan_flops(
    x_shape: torch.Size, a_shape: torch.Size, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    """Per pixel, channel and direction: 6 for the three neighbours, 2 for each gate; 12 per row of logits."""
    batch, channels, height, width = x_shape
    num_directions, affinity_channels = a_shape[1], a_shape[3]
    return batch * height * width * num_directions * (10 * channels + 12 * affinity_channels)


def _line_scan_backward_flops(
    dy_shape: torch.Size,
    x_shape: torch.Size,
    a_shape: torch.Size,
    *args: Any,
    out_shape: Any = None,
    **kwargs: Any,
) -> int:
    """Twice the forward pass: every product has two factors."""
    return 2 * line_scan_flops(x_shape, a_shape)
