from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cgspn.operators.linear import linear


def quick_gelu(x: Tensor) -> Tensor:
    """The sigmoid approximation of GELU in OpenAI's CLIP: ``x * sigmoid(1.702 x)``."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
}


class Mlp(nn.Module):
    """The token-wise half of a block: linear, activation, linear.

    Args:
        dim: Channels C of input and output.
        hidden_dim: Channels between the two layers.
        activation: A key of ``ACTIVATIONS``; SwiGLU does not use it.
        swiglu: Gates the hidden channels: ``fc2(silu(g) * v)`` with ``[g | v] = fc1(x)``.

    Raises:
        ValueError: If the activation is unknown.
    """

    def __init__(
        self, dim: int, hidden_dim: int, activation: str = "gelu_tanh", swiglu: bool = False
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"Unknown activation {activation!r}; valid: {', '.join(ACTIVATIONS)}.")
        self.activation = activation
        self.swiglu = swiglu
        self.fc1 = linear(dim, 2 * hidden_dim if swiglu else hidden_dim)
        self.fc2 = linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., C) to (..., C)."""
        if self.fuses_activation(x):
            # In the product's epilogue, which has no derivative: the hidden channels are written once only.
            hidden = torch._addmm_activation(
                self.fc1.bias, x.flatten(0, -2), self.fc1.weight.T, use_gelu=True
            )
            return self.fc2(hidden.unflatten(0, x.shape[:-1]))
        x = self.fc1(x)
        if self.swiglu:
            gate, value = x.chunk(2, dim=-1)
            return self.fc2(F.silu(gate) * value)
        return self.fc2(ACTIVATIONS[self.activation](x))

    def fuses_activation(self, x: Tensor) -> bool:
        """Whether cuBLAS applies the activation: bfloat16 inference on CUDA with ``gelu_tanh``."""
        return (
            x.is_cuda
            and x.dtype == self.fc1.weight.dtype == torch.bfloat16
            and self.activation == "gelu_tanh"
            and not self.swiglu
            and not torch.is_grad_enabled()
            and type(self.fc1) is nn.Linear
        )


class LayerScale(nn.Module):
    """Learned factor per channel on a residual branch (arXiv:2103.17239, equation 5).

    Args:
        dim: Channels C.
        init: Value of every factor at the start.
    """

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        """Scales (..., C)."""
        return x * self.gamma


class DropPath(nn.Module):
    """Drops a residual branch for whole samples in training, scaling what is kept (arXiv:1603.09382).

    Args:
        rate: Probability of dropping, in [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"drop_path={rate} is not in [0, 1).")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, ...) to the same shape."""
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * (mask / keep)
