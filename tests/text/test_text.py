import subprocess
import sys

import pytest
import torch

from cgspn.text import HashTokenizer, TextConfig, TextTransformer
from cgspn.text.tokenizer import PADDING, word_hash
from cgspn.text.transformer import HashEmbedding

TEXTS = ["A boat, left of a tree.", "snow", "", "Two words " * 40]


def test_tokens():
    tokens = HashTokenizer(context_length=10)(TEXTS)
    assert tokens.shape == (4, 10)
    assert tokens.dtype == torch.int64
    words = ["a", "boat", ",", "left", "of", "a", "tree", "."]
    assert tokens[0].tolist() == [word_hash(word) for word in words] + [PADDING] * 2
    assert tokens[2].tolist() == [PADDING] * 10
    assert PADDING not in tokens[3]
    assert torch.equal(HashTokenizer()(["A BOAT"]), HashTokenizer()(["a  boat"]))


def test_hash_is_the_same_in_every_process():
    code = "from cgspn.text.tokenizer import word_hash; print(word_hash('boat'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(other) == word_hash("boat") < 2**63


def test_a_word_is_the_sum_of_its_two_rows():
    embedding, word = HashEmbedding(16, 8), word_hash("boat")
    expected = embedding.table.weight[word % 16] + embedding.table.weight[16 + word // 16 % 16]
    torch.testing.assert_close(embedding(torch.tensor([[word]]))[0, 0], expected)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_embedding_does_not_depend_on_the_other_texts(mode):
    text = TextTransformer(12, TextConfig(width=32, num_heads=2, context_length=16))
    getattr(text, mode)()
    together = text.encode(TEXTS)
    assert together.shape == (4, 12)
    assert together.isfinite().all()
    for row, sentence in zip(together, TEXTS, strict=True):
        torch.testing.assert_close(text.encode([sentence])[0], row, rtol=1e-4, atol=1e-6)


def test_word_order_counts():
    text = TextTransformer(12, TextConfig(width=32, depth=1, num_heads=2))
    a, b = text.encode(["tree left of boat", "boat left of tree"])
    assert not torch.allclose(a, b, atol=1e-4)
