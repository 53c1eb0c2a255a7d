"""The project's own text tower: a tokenizer that needs no download and a small transformer."""

from cgspn.text.tokenizer import HashTokenizer
from cgspn.text.transformer import TextConfig, TextTransformer

__all__ = ["HashTokenizer", "TextConfig", "TextTransformer"]
