"""A small text transformer over hashed words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cgspn.text.tokenizer import PADDING, HashTokenizer


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The shape of a ``TextTransformer``.

    Args:
        width: Channels inside.
        depth: Layers.
        num_heads: Attention heads.
        num_buckets: Rows of each of the two word tables.
        context_length: Words kept of a text.

    Raises:
        ValueError: If a number is below 1 or the heads do not divide the width.
    """

    width: int = 128
    depth: int = 2
    num_heads: int = 4
    num_buckets: int = 4096
    context_length: int = 64

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise ValueError(f"text.{name}={value} must be at least 1.")
        if self.width % self.num_heads:
            raise ValueError(f"text.num_heads={self.num_heads} does not divide text.width={self.width}.")


class HashEmbedding(nn.Module):
    """Embeds a 63-bit word number as the sum of two rows, one from each of two tables.

    A word is lost to another only if both of its rows collide: with n distinct words and m rows a table, the
    expected number of such pairs is n * (n - 1) / (2 * m**2), 0.03 for 1,000 words and 4,096 rows, where one
    table of as many parameters would have 61. A single shared row blurs two words without merging them.

    Args:
        num_buckets: Rows of each table.
        dim: Channels.

    Source: Svenstrup et al., Hash Embeddings for Efficient Word Representations, 2017.
    """

    def __init__(self, num_buckets: int, dim: int) -> None:
        super().__init__()
        self.num_buckets = num_buckets
        self.table = nn.Embedding(2 * num_buckets, dim)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps tokens (B, L), int64, to (B, L, dim)."""
        first = tokens % self.num_buckets
        second = (tokens // self.num_buckets) % self.num_buckets + self.num_buckets
        return self.table(first) + self.table(second)


class TextTransformer(nn.Module):
    """Text tower: hashed words, a bidirectional pre-norm transformer, the mean over words, a projection.

    Args:
        output_dim: Channels of the text embedding, those of the image summary it is compared with.
        config: The tower's shape.
    """

    def __init__(self, output_dim: int, config: TextConfig) -> None:
        super().__init__()
        width = config.width
        self.tokenizer = HashTokenizer(config.context_length)
        self.embedding = HashEmbedding(config.num_buckets, width)
        self.pos_embed = nn.Parameter(torch.zeros(config.context_length, width))
        nn.init.normal_(self.pos_embed, std=0.01)
        layer = nn.TransformerEncoderLayer(
            width,
            config.num_heads,
            4 * width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(
            layer, config.depth, nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.proj = nn.Linear(width, output_dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps tokens (B, L), int64, 0 for padding, to text embeddings (B, output_dim), not normalised."""
        present = tokens != PADDING
        # A text without a word attends to, and is, the padding alone: attention over nothing is NaN.
        present[:, 0] = True
        x = self.embedding(tokens) + self.pos_embed[: tokens.shape[1]]
        x = self.layers(x, src_key_padding_mask=~present)
        weight = present.to(x.dtype)[..., None]
        return self.proj((x * weight).sum(dim=1) / weight.sum(dim=1))

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Tokenises and embeds B texts, (B, output_dim)."""
        return self(self.tokenizer(texts).to(self.pos_embed.device))
