"""A tokenizer without a vocabulary file: every word is its own hash."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import torch
from torch import Tensor

PADDING = 0

_WORD = re.compile(r"[^\W_]+|[^\w\s]")


def word_hash(word: str) -> int:
    """A positive 63-bit number, the same on every machine and in every process."""
    digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 1) or 1


class HashTokenizer:
    """Splits lower-cased text into words and punctuation marks and hashes each to 63 bits.

    Two different words get the same number with probability 2**-63; what an embedding table of finite size
    makes of the numbers is ``TextTransformer``'s affair. There is nothing to train, download or store, and
    sequences are as short as the sentence has words. Word forms share nothing ("tree", "trees"), which a
    subword vocabulary would give.

    Args:
        context_length: Words kept of a text; the rest is cut off.
    """

    def __init__(self, context_length: int = 64) -> None:
        self.context_length = context_length

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Returns int64 tokens of shape (B, L), L the longest text's words, padded with 0 at the end."""
        words = [_WORD.findall(text.lower())[: self.context_length] for text in texts]
        length = max([1, *map(len, words)])
        rows = [[word_hash(word) for word in text] + [PADDING] * (length - len(text)) for text in words]
        return torch.tensor(rows, dtype=torch.int64).view(len(rows), length)
