from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cgspn.errors import are_numbers


class FeatureMaps(nn.Module):
    """An encoder as a network with a decode head wants it: images in, feature maps out.

    Args:
        encoder: The encoder.
        out_indices: Blocks whose outputs are returned, ascending, negative ones counted from the end.
        norm: Whether the encoder's last norm is applied to them.
        frozen: Whether the encoder stays as it is and in evaluation mode.

    Raises:
        ValueError: If ``out_indices`` does not fit the encoder.
    """

    encoder: Any

    def __init__(
        self, encoder: nn.Module, out_indices: Sequence[int] = (-1,), norm: bool = True, frozen: bool = False
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.out_indices = check_indices(out_indices, self.encoder.depth)
        self.norm = norm
        self.frozen = frozen
        if frozen:
            encoder.requires_grad_(False)
        freeze_unused(encoder, self.out_indices, norm)
        self.train(self.training)

    def train(self, mode: bool = True) -> FeatureMaps:
        """Sets the mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Feature maps (B, C, h, w) of normalised images (B, 3, H, W), one for each of ``out_indices``."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = self.encoder.forward_intermediates(
                images, indices=self.out_indices, norm=self.norm, stop_early=True, intermediates_only=True
            )
        return tuple(maps)


def check_indices(indices: Sequence[int], depth: int) -> list[int]:
    """Block indices counted from 0.

    Raises:
        ValueError: If there is no such block, none at all, or they do not ascend.
    """
    if not isinstance(indices, Sequence) or not are_numbers(indices, len(indices), int):
        raise ValueError(f"out_indices={indices!r} must be a list of blocks.")
    if outside := [i for i in indices if not -depth <= i < depth]:
        raise ValueError(f"out_indices names block {outside[0]}; valid: {-depth} to {depth - 1}.")
    blocks = [i % depth for i in indices]
    if not blocks or blocks != sorted(set(blocks)):
        raise ValueError(f"out_indices={list(indices)} must name blocks in ascending order, each once.")
    return blocks


def freeze_unused(encoder: nn.Module, blocks: Sequence[int], norm: bool) -> None:
    """Freezes what does not reach the outputs of ``blocks``.

    Distributed training rejects parameters that get no gradient.
    """
    depth: Any = encoder.depth
    unused = [f"blocks.{i}." for i in range(blocks[-1] + 1, depth)]
    unused += ["head.", "classifier."] if norm else ["head.", "classifier.", "norm."]
    for name, parameter in encoder.named_parameters():
        if name.startswith(tuple(unused)):
            parameter.requires_grad_(False)
