"""The table of caption embeddings: equal to the text tower, read once, never another tower's."""

import pytest
import torch
from safetensors.torch import load_file

from cgspn.teachers import CaptionTable
from cgspn.text import TextConfig, TextTransformer

SHAPE = TextConfig(width=16, depth=1, num_heads=2, num_buckets=64, context_length=8)


class Counted(TextTransformer):
    read = 0

    def encode(self, texts):
        self.read += len(texts)
        return super().encode(texts)


@pytest.fixture
def tower():
    def build(seed=0):
        torch.manual_seed(seed)
        return Counted(12, SHAPE).eval()

    return build


def test_every_caption_is_read_once(tower, tmp_path):
    text = tower()
    table = CaptionTable(tmp_path / "captions.safetensors", text)
    batches = [["a cat", "a dog", "a cat"], ["snow", "a dog"], ["a cat"]]
    found = [table.encode(batch) for batch in batches]
    assert text.read == 3
    with torch.no_grad():
        for batch, embeddings in zip(batches, found, strict=True):
            expected = torch.stack([super(Counted, text).encode([caption])[0] for caption in batch])
            torch.testing.assert_close(embeddings, expected, rtol=1e-5, atol=1e-6)
    assert not found[0].requires_grad


def test_it_is_kept_and_grows(tower, tmp_path):
    path = tmp_path / "folder" / "captions.safetensors"
    first = CaptionTable(path, tower())
    expected = first.encode(["a cat", "a dog"])
    first.save()
    second = CaptionTable(path, tower())
    assert torch.equal(second.encode(["a dog", "a cat"]), expected.flip(0))
    assert second.text.read == 0
    second.encode(["snow"])
    third = CaptionTable(path, tower())
    third.encode(["a boat"])
    second.save()
    third.save()
    last = CaptionTable(path, tower())
    last.encode(["a cat", "a dog", "snow", "a boat"])
    assert last.text.read == 0
    assert load_file(path)["embeddings"].shape == (4, 12)
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, path.name + ".lock"]


def test_embeddings_are_float32_under_autocast(tower, tmp_path):
    table, plain = (CaptionTable(tmp_path / name, tower()) for name in ("a.safetensors", "b.safetensors"))
    with torch.autocast("cpu", torch.bfloat16):
        found = table.encode(["a cat"])
    assert torch.equal(found, plain.encode(["a cat"]))


def test_another_tower_is_refused(tower, tmp_path):
    path = tmp_path / "captions.safetensors"
    table = CaptionTable(path, tower())
    table.encode(["a cat"])
    table.save()
    with pytest.raises(ValueError, match="holds captions as another text tower reads them") as error:
        CaptionTable(path, tower(seed=1))
    assert "\n" not in str(error.value)
    words = tower()
    words.tokenizer.context_length = 2
    with pytest.raises(ValueError, match="another text tower"):
        CaptionTable(path, words)


@pytest.mark.parametrize("content", [b"", b"no table"], ids=["empty", "garbage"])
def test_another_file_is_refused(tower, tmp_path, content):
    path = tmp_path / "captions.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no readable table of captions"):
        CaptionTable(path, tower())


def test_a_folder_that_cannot_be_made_is_named_at_once(tower, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file/deep"):
        CaptionTable(tmp_path / "file" / "deep" / "captions.safetensors", tower())
