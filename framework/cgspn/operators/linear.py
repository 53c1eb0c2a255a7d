from __future__ import annotations

from torch import nn


def linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """A linear layer that starts as ViTs do: weights truncated normal (std 0.02), bias zero."""
    layer = nn.Linear(in_features, out_features, bias=bias)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def zero_linear(in_features: int, out_features: int) -> nn.Linear:
    """A linear layer that starts at zero, for the end of a residual branch."""
    layer = nn.Linear(in_features, out_features)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
