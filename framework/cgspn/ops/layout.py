"""The stride rule of every output of the native operators; ``layout.h`` states the same in C++.

An output like a tensor ``t`` takes the strides of ``t`` where ``t`` is dense, else it is channels-last:
B, H, W, then the remaining axes in their order, C fastest. Directions of an unsummed output sit directly
outside C; those of the state are slowest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Strides = tuple[int, ...]


def strides_in_order(sizes: Sequence[int], order: Sequence[int]) -> Strides:
    """Strides of a dense tensor whose axes lie in memory in ``order``, slowest first."""
    strides = [1] * len(sizes)
    step = 1
    for axis in reversed(order):
        strides[axis] = step
        step = step * torch.sym_max(sizes[axis], 1)
    return tuple(strides)


def channels_last_order(ndim: int) -> list[int]:
    """Axis order of (B, ..., H, W): B, H, W, then the rest."""
    return [0, ndim - 2, ndim - 1, *range(1, ndim - 2)]


def is_dense(sizes: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the elements fill one gapless block, each address once."""
    ndim = len(sizes)
    # These two come first because they hold for symbolic sizes without a guard.
    for order in (channels_last_order(ndim), range(ndim)):
        expected = strides_in_order(sizes, order)
        if all(size == 1 or have == want for size, have, want in zip(sizes, strides, expected, strict=True)):
            return True
    if any(size == 0 for size in sizes):
        return False
    expected_step = 1
    for stride, size in sorted((strides[i], sizes[i]) for i in range(ndim) if sizes[i] != 1):
        if stride != expected_step:
            return False
        expected_step = expected_step * size
    return True


def strides_like(t: Tensor) -> Strides:
    """Strides of an output of the shape of ``t``."""
    if is_dense(t.shape, t.stride()):
        return tuple(t.stride())
    return strides_in_order(t.shape, channels_last_order(t.dim()))


def unsummed_strides(x: Tensor, num_directions: int) -> Strides:
    """Strides of y (B, D, C, H, W) for x (B, C, H, W): directions directly outside C."""
    batch, channel, height, width = strides_like(x)
    channels = x.shape[1]
    inner = 1 if channels == 1 else channel
    block = inner * channels

    def outer(stride: int) -> int:
        return stride * num_directions if stride >= block else stride

    return (outer(batch), block, inner, outer(height), outer(width))


def state_strides(x: Tensor) -> Strides:
    """Strides of the state (B, D, C, H, W) for x (B, C, H, W): directions slowest."""
    batch, *rest = strides_like(x)
    return (batch, torch.sym_max(x.numel(), 1), *rest)


def pad_logits(weight: Tensor, bias: Tensor, num_directions: int) -> tuple[Tensor, Tensor, int]:
    """Weight and bias with rows of zeros behind the logits that all channels share, and their number.

    The kernels that load by bulk copies need every pixel's logits and gates to begin at whole 16 bytes.
    """
    logits = 3 * num_directions
    padding = -logits % 8

    def padded(t: Tensor) -> Tensor:
        return torch.cat((t[:logits], t.new_zeros(padding, *t.shape[1:]), t[logits:]))

    return padded(weight), padded(bias), padding
