"""What the public functions say about arguments that torch or a kernel would stumble over."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# What the native operators take.
LARGEST_CHUNK = 2**62


def check_tensors(**tensors: Any) -> None:
    """Raises ValueError for the first argument that is not a dense tensor."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(tensor).__name__}.")
        if tensor.layout != torch.strided:
            raise ValueError(f"{name} must be dense, got a tensor of layout {tensor.layout}.")


def check_chunk(chunk: Any) -> int | None:
    """The number of lines of a segment, or None for the whole extent.

    Raises:
        ValueError: If it is neither None nor a whole number, or is below 1.
    """
    if chunk is None:
        return None
    if isinstance(chunk, bool) or not isinstance(chunk, int | torch.SymInt) or chunk < 1:
        raise ValueError(f"chunk must be at least 1 line, or None for the whole extent; got {chunk!r}.")
    return None if chunk > LARGEST_CHUNK else chunk  # type: ignore[return-value]


def rows_of(weight: Tensor) -> int:
    """The first extent of a weight, 0 for a number."""
    return weight.shape[0] if weight.dim() else 0


def check_linear(name: str, given: Tensor, weight: Tensor, **vectors: tuple[Tensor | None, int]) -> None:
    """Raises ValueError unless ``weight`` (out, in) takes ``given`` (..., in) and each vector has its size.

    Outside autocast all have one dtype, save that norms of half-precision tensors may be in float32.
    """
    if weight.dim() != 2 or given.dim() < 1 or given.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"weight must have shape (out, in) for {name} of shape (..., in), "
            f"got {tuple(weight.shape)} and {tuple(given.shape)}."
        )
    for key, (vector, size) in vectors.items():
        if vector is not None and tuple(vector.shape) != (size,):
            raise ValueError(f"{key} must have shape ({size},), got {tuple(vector.shape)}.")
    tensors = {name: given, "weight": weight, **{key: vector for key, (vector, _) in vectors.items()}}
    for key, tensor in tensors.items():
        if tensor is None:
            continue
        if not tensor.is_floating_point():
            raise ValueError(f"{key} must hold floating-point numbers, got {tensor.dtype}.")
        if tensor.device != given.device:
            raise ValueError(f"{key} must be on {given.device} as {name} is, got {tensor.device}.")
        mixed = key.startswith("norm_") and given.itemsize == 2 and tensor.dtype == torch.float32
        if tensor.dtype != given.dtype and not mixed and not torch.is_autocast_enabled(given.device.type):
            raise ValueError(f"{key} must have the dtype of {name}, {given.dtype}, got {tensor.dtype}.")
