"""Gathering a batch from all ranks, with gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # Every rank's loss reads this rank's rows, so their gradient is the sum over ranks.
        grad = grad.contiguous()
        dist.all_reduce(grad)
        start = dist.get_rank() * ctx.rows
        return grad[start : start + ctx.rows]


def gather_with_gradient(x: Tensor) -> Tensor:
    """Concatenates the rows of all ranks in rank order; the gradient of each row comes back to its rank.

    Args:
        x: This rank's rows, shape (B, ...), the same shape on every rank. Integer tensors carry no gradient.

    Returns:
        Shape (ranks * B, ...); ``x`` itself when no process group of two or more ranks is running.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    return _Gather.apply(x.contiguous())
