from __future__ import annotations

import torch
from torch import Tensor, nn

from cgspn.registry import OPERATORS, OperatorConfig


class PrefixTokens(nn.Module):
    """Learned tokens without a place in the picture, a ViT's class token and registers.

    Blocks then run on one row (B, 1, P + H * W, C), the prefix first. So every operator must treat all
    positions alike, which attention does and propagation does not.

    Args:
        count: Number P of tokens.
        dim: Channels C.
    """

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.count = count
        self.weight = nn.Parameter(torch.empty(1, count, dim))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def join(self, grid: Tensor, norm: nn.Module) -> Tensor:
        """Puts the normalised tokens before those of a grid (B, H, W, C): (B, 1, P + H * W, C)."""
        prefix = norm(self.weight).to(grid.dtype).expand(len(grid), -1, -1)
        return torch.cat([prefix, grid.flatten(1, 2)], dim=1)[:, None]

    def split(self, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """The prefix (B, P, C) and the grid (B, height, width, C) of what ``join`` made."""
        prefix, grid = x[:, 0, : self.count], x[:, 0, self.count :]
        return prefix, grid.unflatten(1, (height, width))


def needs_positions(operator: OperatorConfig) -> bool:
    """Whether the operator cannot tell positions apart, so that a position embedding has to."""
    entry = OPERATORS.find(OPERATORS.check(operator)["type"])
    return getattr(getattr(entry, "target", entry), "needs_positions", False)


def check_prefix(count: int, operators: list[OperatorConfig]) -> None:
    """Raises ValueError if there is a prefix and an operator that has no place for it."""
    if count < 0:
        raise ValueError(f"prefix_tokens={count} is negative.")
    if not count:
        return
    unfit = [operator for operator in operators if not needs_positions(operator)]
    if unfit:
        valid = [name for name in OPERATORS.names() if needs_positions({"type": name})]
        raise ValueError(
            f"prefix_tokens={count} does not go with the operator {OPERATORS.check(unfit[0])['type']!r}, "
            f"which has no place for them; valid: {', '.join(valid)}."
        )
