"""The normalisation alone: affinity logits to row-stochastic tridiagonal weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cgspn.ops import library
from cgspn.ops.checks import check_tensors
from cgspn.ops.directions import DIRECTIONS, direction_codes
from cgspn.ops.line_scan import DTYPES
from cgspn.ops.reference import row_stochastic_ref


def row_stochastic(a: Tensor, *, directions: Sequence[str] = DIRECTIONS) -> Tensor:
    """Normalises affinity logits to the weights that :func:`cgspn.ops.line_scan` propagates with.

    ``line_scan(x, row_stochastic(a), normalize=False)`` equals ``line_scan(x, a)``.

    Args:
        a: Affinity logits, shape (B, D, 3, Ca, H, W), float16, bfloat16, float32 or float64.
        directions: D distinct names out of ``tb``, ``bt``, ``lr``, ``rl``; they decide where lines end.

    Returns:
        Weights, shape and dtype of ``a``: at every position the three neighbours' weights sum to 1, and
        those outside the line are 0. Strides of ``a`` where it is dense, else channels-last.

    Raises:
        ValueError: If the shape, dtype or a direction is not valid.

    Source: GSPN, arXiv:2501.12381, the Stability-Context Condition.
    """
    check_tensors(a=a)
    codes = direction_codes(directions)
    if a.dim() != 6 or a.shape[1] != len(codes) or a.shape[2] != 3:
        raise ValueError(f"a must have shape (B, {len(codes)}, 3, Ca, H, W), got {tuple(a.shape)}.")
    if a.dtype not in DTYPES:
        raise ValueError(f"a must be one of {', '.join(map(str, DTYPES))}, got {a.dtype}.")
    if not library.active(a.device):
        return row_stochastic_ref(a, directions=directions)
    return torch.ops.cgspn.row_stochastic(a, codes)
