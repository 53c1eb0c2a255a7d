"""What the losses say about tensors that do not go together."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from cgspn.ops.checks import check_tensors


def check_features(**tensors: Any) -> None:
    """Raises ValueError unless all are floating-point features (..., C) on one device, with an entry each."""
    check_tensors(**tensors)
    first, where = next((name, tensor.device) for name, tensor in tensors.items())
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must hold floating-point numbers, got {tensor.dtype}.")
        if tensor.dim() < 2 or not tensor.numel():
            raise ValueError(f"{name} must have shape (..., C) and rows, got {tuple(tensor.shape)}.")
        if tensor.device != where:
            raise ValueError(f"{name} must be on {where} as {first} is, got {tensor.device}.")


def check_number(name: str, number: Any, like: Tensor) -> None:
    """Raises ValueError unless ``number`` is one floating-point number on the device of ``like``."""
    check_tensors(**{name: number})
    if number.numel() != 1 or number.dim() > 1 or not number.is_floating_point():
        raise ValueError(
            f"{name} must be one floating-point number, got {number.dtype} of shape {tuple(number.shape)}."
        )
    if number.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, got {number.device}.")


def check_positive(name: str, value: Any, zero: bool = False) -> None:
    """Raises ValueError unless ``value`` is a finite positive number, or 0 where ``zero`` allows it."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name} must be {'at least 0' if zero else 'positive'}, got {value!r}.")
