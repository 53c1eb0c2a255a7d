"""Embeddings of captions that a frozen text tower has already read, kept in a file."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from cgspn.backbones.weights import save_tensors
from cgspn.losses import caption_keys
from cgspn.teachers.base import TextTower

PROBE = ["a photo of a cat.", "Two boats, 3 trees and snow"]
KEYS, EMBEDDINGS, TOWER = "keys", "embeddings", "text_tower"


class CaptionTable:
    """A text tower that reads each caption once.

    Embeddings are computed in float32 whatever the trainer's precision, and are kept by a hash of the caption
    of 63 bits. The file names the text tower that they come from, by its weights and tokenizer, so that
    another teacher's embeddings are never taken for its own. Several processes may share the file.

    Args:
        path: The file, ``.safetensors``; ``save`` makes it where there is none.
        text: The text tower.

    Raises:
        ValueError: If the file cannot be read, is no such table or comes from another text tower.
    """

    def __init__(self, path: str | Path, text: TextTower) -> None:
        self.path, self.text = Path(path), text
        # Now rather than at the first checkpoint, where a folder that cannot be made would end the run.
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.tower = fingerprint(text)
        self.index: dict[int, int] = {}
        self.rows = torch.empty(0, 0)
        self.unsaved = False
        if self.path.exists():
            self.insert(*self.read())
            self.unsaved = False

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embeds B texts, (B, C), float32, on the tower's device; only new ones run the tower."""
        keys = caption_keys(texts).tolist()
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self.index}
        device = next(cast(nn.Module, self.text).parameters()).device
        if new:
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                embeddings = self.text.encode(list(new.values()))
            self.insert(torch.tensor(list(new)), embeddings.float().cpu())
        return self.rows[[self.index[key] for key in keys]].to(device)

    def insert(self, keys: Tensor, embeddings: Tensor) -> None:
        """Takes in the embeddings (N, C) of the captions that have these keys (N,)."""
        fresh = [i for i, key in enumerate(keys.tolist()) if key not in self.index]
        end = len(self.index) + len(fresh)
        if end > len(self.rows):
            grown = embeddings.new_empty(max(end, 2 * len(self.rows)), embeddings.shape[1])
            if self.index:
                grown[: len(self.index)] = self.rows[: len(self.index)]
            self.rows = grown
        self.rows[len(self.index) : end] = embeddings[fresh]
        for i in fresh:
            self.index[int(keys[i])] = len(self.index)
        self.unsaved = self.unsaved or bool(fresh)

    def save(self) -> None:
        """Adds what is new to the file; what other processes wrote there meanwhile stays."""
        if not self.unsaved:
            return
        with open(self.path.with_name(self.path.name + ".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.path.exists():
                self.insert(*self.read())
            temporary = self.path.with_name(self.path.name + ".part")
            keys = torch.tensor(list(self.index), dtype=torch.int64)
            save_tensors(temporary, {KEYS: keys, EMBEDDINGS: self.rows[: len(keys)]}, {TOWER: self.tower})
            os.replace(temporary, self.path)
        self.unsaved = False

    def read(self) -> tuple[Tensor, Tensor]:
        """The keys (N,) and embeddings (N, C) in the file."""
        try:
            with safetensors.safe_open(self.path, "pt") as file:
                tower = (file.metadata() or {}).get(TOWER)
            tensors = safetensors.torch.load_file(self.path)
        except (safetensors.SafetensorError, OSError) as error:
            raise ValueError(f"{self.path} is no readable table of captions: {error}") from error
        if tower is None or not {KEYS, EMBEDDINGS} <= tensors.keys():
            raise ValueError(f"{self.path} is no table of captions: it names no text tower.")
        if tower != self.tower:
            raise ValueError(
                f"{self.path} holds captions as another text tower reads them; give text_cache another file "
                "for this teacher, or delete it."
            )
        return tensors[KEYS], tensors[EMBEDDINGS]


def fingerprint(text: TextTower) -> str:
    """A hash of a text tower's weights and of what its tokenizer makes of two sentences."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(cast(nn.Module, text).state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    tokens = text.tokenizer(PROBE)
    for name, values in sorted(tokens.items()) if isinstance(tokens, Mapping) else [("", tokens)]:
        digest.update(f"{name} {values.tolist()}".encode())
    return digest.hexdigest()
