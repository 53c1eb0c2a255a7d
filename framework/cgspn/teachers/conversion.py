"""From another library's vision transformer to a ``VisionEncoder`` with the same weights."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from cgspn.backbones.vision_transformer import VisionEncoder
from cgspn.backbones.weights import load_weights
from cgspn.blocks import layers

Tensors = dict[str, Tensor]
# The names that transformers and our blocks give the same functions.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def library(name: str, extra: str) -> ModuleType:
    """Imports a library that an extra of cgspn brings.

    Raises:
        ModuleNotFoundError: If it is not installed; the message names the extra.
        ValueError: If it is installed and cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        message = f"{error.name} is not installed; get it with: pip install 'cgspn[{extra}]'"
        raise ModuleNotFoundError(message, name=error.name) from None
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"{name} is installed but cannot be imported: {first_line(error)}") from error


@contextlib.contextmanager
def readable(what: str) -> Iterator[None]:
    """Turns whatever a library raises about bad files or names into one line that starts with ``what``."""
    try:
        yield
    except ModuleNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{what}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    if "weights_only" in str(error):
        # The library goes on with how to run whatever the file holds.
        return "it is damaged, or holds more than tensors and plain data"
    lines = [line for line in map(str.strip, str(error).splitlines()) if line] or [type(error).__name__]
    return " ".join(lines[: 1 + lines[0].endswith(":")])[:300]


def activation(name: str, source: str) -> str:
    """Our name of an activation of transformers.

    Raises:
        ValueError: If there is none.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"{source} has the activation {name!r}; valid: {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def activation_of(module: nn.Module, source: str) -> str:
    """Our name of an activation module, found by what it computes.

    Raises:
        ValueError: If there is none.
    """
    x = torch.linspace(-8, 8, 1001)
    with torch.no_grad():
        for name, function in layers.ACTIVATIONS.items():
            if torch.allclose(module(x.clone()), function(x), rtol=0, atol=1e-6):
                return name
    raise ValueError(
        f"{source} has the activation {type(module).__name__}; valid: {', '.join(layers.ACTIVATIONS)}."
    )


def require(source: str, **conditions: bool) -> None:
    """Raises ValueError unless all hold; the names say what ``source`` must have."""
    for name, holds in conditions.items():
        if not holds:
            raise ValueError(
                f"{source} is no plain vision transformer: it must have {name.replace('_', ' ')}."
            )


def copied(name: str, module: nn.Module) -> Tensors:
    """The tensors of a module under another name."""
    return {f"{name}.{key}": tensor for key, tensor in module.state_dict().items()}


def prefixed(name: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """The same tensors below ``name``."""
    return {f"{name}.{key}": tensor for key, tensor in tensors.items()}


def stacked(name: str, *layers: nn.Module) -> Tensors:
    """Linear layers on one input as a single one, their outputs in order."""
    parts = [layer.state_dict() for layer in layers]
    return {f"{name}.{key}": torch.cat([part[key] for part in parts]) for key in parts[0]}


def fused_attention(name: str, attention: nn.MultiheadAttention) -> Tensors:
    """``torch.nn.MultiheadAttention`` as the operator ``attention``."""
    qkv = {f"{name}.qkv.weight": attention.in_proj_weight, f"{name}.qkv.bias": attention.in_proj_bias}
    return {**qkv, **copied(f"{name}.proj", attention.out_proj)}


def patch_embedding(weight: Tensor, bias: Tensor | None) -> Tensors:
    """A convolution of patches, (C, 3, p, p); without a bias its bias is zero."""
    return {
        "patch_embed.weight": weight,
        "patch_embed.bias": weight.new_zeros(len(weight)) if bias is None else bias,
    }


def positions(table: Tensor, rows: int, columns: int) -> Tensors:
    """Position vectors (rows * columns, C) in reading order."""
    return {"pos_embed.weight": table.reshape(1, rows, columns, -1)}


def side(count: int, source: str) -> int:
    """The side of a square grid of ``count`` positions."""
    root = round(count**0.5)
    if root**2 != count:
        raise ValueError(f"{source} has {count} positions, which make no square grid.")
    return root


def build_encoder(arguments: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str) -> VisionEncoder:
    """A ``VisionEncoder`` with the given arguments and weights.

    Raises:
        ValueError: If a tensor is missing, unknown or of another shape.
    """
    encoder = VisionEncoder(**arguments)
    load_weights(encoder, {name: tensor.detach() for name, tensor in tensors.items()}, source)
    return encoder
