"""Image-text pairs in webdataset shards: ``key.jpg``, ``key.txt`` and, if there, ``key.cls``."""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from cgspn.data.cached import CachedSamples
from cgspn.data.collate import Collate
from cgspn.data.loader import EpochLoader, EvaluationLoader
from cgspn.data.module import ImageDataModule
from cgspn.data.stream import ShardStream
from cgspn.data.transforms import HALF
from cgspn.errors import check_at_least


def expand_shards(shards: str | Sequence[str]) -> list[str]:
    """Names of shards: braces and, for local files, wildcards are expanded, ``::`` separates patterns.

    Raises:
        FileNotFoundError: If a local shard is missing.
        ValueError: If braces do not match, or there is something else than strings.
    """
    from braceexpand import braceexpand

    _check_strings("shards", [shards] if isinstance(shards, str) else shards)
    patterns = shards.split("::") if isinstance(shards, str) else list(shards)
    names: list[str] = []
    for pattern in patterns:
        try:
            expanded = list(braceexpand(pattern))
        except ValueError:
            raise ValueError(f"The braces of the shards {pattern!r} do not match.") from None
        for name in expanded:
            if _remote(name):
                names.append(name)
            elif matches := sorted(glob.glob(name)) or [n for n in [name] if Path(n).is_file()]:
                names += matches
            else:
                raise FileNotFoundError(
                    f"No shard {name!r}{'' if name == pattern else f' (from {pattern!r})'}."
                )
    if not names:
        raise FileNotFoundError(f"No shards: {shards!r}.")
    return names


def _remote(name: str) -> bool:
    return "://" in name or name.startswith("pipe:")


def count_samples(shards: Sequence[str]) -> int | None:
    """Number of samples by the ``sizes.json`` beside the shards; None if one does not say.

    Raises:
        ValueError: If a ``sizes.json`` does not map names of shards to whole numbers.
    """
    total, known = 0, {}
    for shard in shards:
        listing = Path(shard).parent / "sizes.json"
        if _remote(shard) or not listing.is_file():
            return None
        if listing not in known:
            known[listing] = _read_sizes(listing)
        size = known[listing].get(Path(shard).name)
        if size is None:
            return None
        total += size
    return total


def _read_sizes(path: Path) -> dict[str, int]:
    try:
        sizes = json.loads(path.read_text())
    except ValueError:
        sizes = None
    if not isinstance(sizes, dict) or not all(type(n) is int and n >= 0 for n in sizes.values()):
        raise ValueError(f"{path} must map names of shards to numbers of samples; mend or delete it.")
    return sizes


class WebDatasetDataModule(ImageDataModule):
    """Image-text shards in the DataComp layout: batches ``{"image", "text"[, "label"]}``.

    Shards may be compressed (``.tar.gz``) and remote (anything that webdataset opens). What cannot be read is
    a counted warning. Training streams: shards are shuffled, then samples within a buffer,
    both by (seed, epoch). The batches also depend on ``num_workers``, unless ``cache`` is set.

    Args:
        train: Training shards, such as ``data/train-{0000..0099}.tar``, or a list; None for none.
        val: Validation shards.
        test: Test shards; None means those for validation.
        batch_size: Samples in a batch of one process.
        image_size: Side of the encoder's square input, or (height, width).
        mean: Mean of each channel that the encoder expects, of a picture in [0, 1].
        std: Standard deviation of each channel that the encoder expects.
        crop: Smallest share of a training picture that a random crop keeps; None takes no random crop.
        flip: Whether training pictures are mirrored at random; not for captions that say left and right.
        train_samples: Samples in a training epoch, over all processes. Default: what ``sizes.json`` beside
            the shards says, else one pass over the shards (single process only).
        shuffle: Samples in the buffer that is shuffled.
        cache: Keeps all samples decoded in memory, for sets that fit; the whole set is then shuffled.
        captions: Whether samples have captions; set it to False for shards of pictures alone.
        class_names: Names of the classes that ``cls`` numbers, for zero-shot classification. Where they are
            given, samples for validation and tests have a label.
        seed: Seed of the order and the augmentation.
        num_workers: Processes that load.
    """

    def __init__(
        self,
        train: str | list[str] | None = None,
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        batch_size: int = 64,
        image_size: int | list[int] = 224,
        mean: Sequence[float] = HALF,
        std: Sequence[float] = HALF,
        crop: float | None = None,
        flip: bool = False,
        train_samples: int | None = None,
        shuffle: int = 1000,
        cache: bool = False,
        captions: bool = True,
        class_names: list[str] | None = None,
        seed: int = 0,
        num_workers: int = 2,
    ) -> None:
        super().__init__(batch_size, image_size, mean, std, crop, flip, seed, num_workers)
        _require_webdataset()
        check_at_least(1, shuffle=shuffle)
        if train_samples is not None:
            check_at_least(batch_size, train_samples=train_samples)
        if class_names is not None:
            _check_strings("class_names", class_names)
        self.shards = {"train": train, "val": val, "test": test or val}
        self.train_samples, self.shuffle, self.cache = train_samples, shuffle, cache
        self.captions, self.class_names = captions, class_names
        self._cached: dict[str, CachedSamples] = {}

    @property
    def num_classes(self) -> int | None:
        """Number of classes, if their names are given."""
        return len(self.class_names) if self.class_names else None

    def find(self, split: str) -> None:
        """Expands the patterns of the shards."""
        if patterns := self.shards[split]:
            expand_shards(patterns)

    def train_dataloader(self) -> EpochLoader | EvaluationLoader:
        """Shuffled, augmented samples; what does not fill a batch is left out."""
        return self._split("train")

    def val_dataloader(self) -> EpochLoader | EvaluationLoader | list:
        """Samples in the shards' order; nothing if no shards are given."""
        return self._split("val") if self.shards["val"] else []

    def test_dataloader(self) -> EpochLoader | EvaluationLoader:
        """Samples in the shards' order."""
        return self._split("test")

    def predict_dataloader(self) -> EpochLoader | EvaluationLoader:
        """Samples for tests, in the shards' order."""
        return self._split("test")

    def _split(self, split: str) -> EpochLoader | EvaluationLoader:
        if (patterns := self.shards[split]) is None:
            given = [name for name, value in self.shards.items() if value]
            raise ValueError(
                f"WebDatasetDataModule has no {split!r} shards; given: {', '.join(given) or 'none'}."
            )
        train = split == "train"
        shards = expand_shards(patterns)
        transform = self.train_transform if train else self.transform
        if self.cache:
            key = "|".join(shards) + f"|{train}"
            if key not in self._cached:
                self._cached[key] = CachedSamples(
                    shards,
                    transform,
                    self.bad_samples,
                    self._fields(train),
                    train,
                    self.seed,
                    self.num_classes,
                )
            samples = self._cached[key]
            return self.loader(samples, len(samples), Collate(transform), train)
        return self._stream(shards, train)

    def _fields(self, train: bool) -> list[str]:
        return ["text"] * bool(self.captions) + ["label"] * bool(self.class_names and not train)

    def _stream(self, shards: list[str], train: bool) -> EpochLoader | EvaluationLoader:
        transform = self.train_transform if train else self.transform
        total = (self.train_samples or count_samples(shards)) if train else None
        if train and total is None and self.world_size > 1:
            raise ValueError(
                f"Training with {self.world_size} processes needs train_samples, so that their batches match."
            )
        if train and len(shards) < self.world_size:
            raise ValueError(f"{len(shards)} training shards are too few for {self.world_size} processes.")
        epoch = None if total is None else total // (self.batch_size * self.world_size)
        if epoch == 0:
            needed = f"a batch of {self.batch_size} on each of {self.world_size} processes"
            raise ValueError(f"{total} training samples do not fill {needed}.")
        own = -(-len(shards) // self.world_size)
        workers = min(self.num_workers, own if not train else len(shards) // self.world_size)
        stream = ShardStream(
            shards,
            transform,
            self.bad_samples,
            self._fields(train),
            self.batch_size,
            train,
            self.seed,
            self.shuffle,
            epoch,
            self.rank,
            self.world_size,
            self.num_classes,
        )
        loader = DataLoader(stream, batch_size=None, num_workers=workers, generator=torch.Generator())
        where = f"{len(shards)} shards such as {shards[0]!r}"
        if not train:
            # Ranks without a shard of their own have nothing to evaluate.
            nothing = None if self.rank >= len(shards) else f"No sample can be read from {where}."
            return EvaluationLoader(loader, None, nothing)
        order = {
            "shards": len(shards),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "world_size": self.world_size,
            "num_workers": workers,
        }
        nothing = f"No batch of {self.batch_size} samples can be read from {where}."
        return self.training_loader(loader, stream, order, placeholders=True, nothing=nothing)


def _check_strings(name: str, values: Any) -> None:
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{name} must be strings, got {values!r:.80}.")


def _require_webdataset() -> None:
    try:
        import webdataset  # noqa: F401
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "WebDatasetDataModule needs webdataset: pip install 'cgspn[data]'."
        ) from None
