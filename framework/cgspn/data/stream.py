"""Streaming samples out of tar shards."""

from __future__ import annotations

import io
import itertools
import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from cgspn.data.bad_samples import BadSamples
from cgspn.data.collate import Collate
from cgspn.data.transforms import ImageTransform, to_rgb

Raw = dict[str, Any]
IMAGES = ("jpg", "jpeg", "png", "webp")
FIELDS = {"text": "txt", "label": "cls"}


def read_shards(shards: Iterable[str], bad: BadSamples) -> Iterator[Raw]:
    """Yields the undecoded samples of shards in order; what cannot be read is counted.

    Each sample maps suffixes to bytes; ``__key__`` is its name, ``__url__`` its shard.
    """
    import webdataset
    from webdataset import tariterators

    for shard in shards:

        def stop(error: Exception, shard: str = shard) -> bool:
            reason = getattr(error, "strerror", None) or (error.args[0] if error.args else error)
            bad.add(f"rest of {shard}", str(reason).split(" @ ")[0])
            return False

        def go_on(error: Exception, shard: str = shard) -> bool:
            bad.add(shard, error.args[0] if error.args else error)
            return True

        try:
            stream = webdataset.gopen(shard)
        except Exception as error:
            stop(error)
            continue
        with stream:
            files = tariterators.tar_file_expander([{"url": shard, "stream": stream}], handler=stop)
            yield from tariterators.group_by_keys(files, handler=go_on)


class Decoder:
    """Turns undecoded samples into ``{"pixels"[, "text"][, "label"]}``, or None where one cannot be read.

    Args:
        transform: Makes the encoder's input; None keeps the picture's own size.
        bad: Counts what cannot be read.
        fields: Those of ``text`` and ``label`` that each sample must have.
        seed: Seed of the augmentation; None means none.
        num_classes: Number of classes, where ``fields`` has ``label``.
    """

    def __init__(
        self,
        transform: ImageTransform | None,
        bad: BadSamples,
        fields: Sequence[str],
        seed: int | None,
        num_classes: int | None = None,
    ) -> None:
        self.transform, self.bad, self.fields, self.seed = transform, bad, tuple(fields), seed
        self.num_classes = num_classes

    def __call__(self, raw: Raw, epoch: int) -> dict[str, Any] | None:
        """Decodes one sample; ``epoch`` seeds its augmentation."""
        key = raw["__key__"]
        rng = None
        if self.seed is not None:
            rng = np.random.default_rng([self.seed, epoch, zlib.crc32(key.encode())])
        try:
            return self._decode(raw, rng)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            self.bad.add(f"{raw['__url__']}: {key}", error.args[0] if error.args else error)
            return None

    def _decode(self, raw: Raw, rng: np.random.Generator | None) -> dict[str, Any]:
        suffix = next((suffix for suffix in IMAGES if suffix in raw), None)
        if suffix is None:
            raise ValueError(f"no picture ({', '.join(IMAGES)})")
        if missing := [FIELDS[field] for field in self.fields if FIELDS[field] not in raw]:
            raise ValueError(f"no {missing[0]}")
        with Image.open(io.BytesIO(raw[suffix])) as image:
            pixels = self.transform.pixels(image, rng) if self.transform else np.array(to_rgb(image))
        sample: dict[str, Any] = {"pixels": pixels}
        if "text" in self.fields:
            sample["text"] = raw["txt"].decode("utf-8").strip()
        if "label" in self.fields:
            sample["label"] = label = int(raw["cls"])
            if self.num_classes is not None and not 0 <= label < self.num_classes:
                raise ValueError(f"cls is {label:.20g}; valid: 0 to {self.num_classes - 1}")
        return sample


class ShardStream(IterableDataset):
    """Batches of samples streamed from shards, each process and worker reading shards of its own.

    Args:
        shards: Names of the shards.
        transform: Makes the encoder's input.
        bad: Counts what cannot be read.
        fields: Those of ``text`` and ``label`` that each sample must have.
        batch_size: Samples in a batch.
        train: Whether to shuffle, augment and leave out a last, smaller batch.
        seed: Seed of the order and the augmentation.
        shuffle: Samples in the buffer that is shuffled.
        batches: Batches in an epoch of this process; the shards are read as often as that takes. None means
            one pass.
        rank: This process.
        world_size: Number of processes.
        num_classes: Number of classes, where ``fields`` has ``label``.
    """

    def __init__(
        self,
        shards: Sequence[str],
        transform: ImageTransform,
        bad: BadSamples,
        fields: Sequence[str],
        batch_size: int,
        train: bool,
        seed: int = 0,
        shuffle: int = 1000,
        batches: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        num_classes: int | None = None,
    ) -> None:
        self.shards, self.bad, self.batch_size = list(shards), bad, batch_size
        self.train, self.seed, self.shuffle, self.batches = train, seed, shuffle, batches
        self.rank, self.world_size = rank, world_size
        self.decode = Decoder(transform, bad, fields, seed if train else None, num_classes)
        self.collate = Collate(transform)
        self.epoch = self.skip = 0
        self._failed = 0

    def __len__(self) -> int:
        """Batches in an epoch, if that is fixed."""
        if self.batches is None:
            raise TypeError("The number of batches is not known.")
        return self.batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields batches; of the first ``skip``, those known to be this worker's come empty and unread."""
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        quota = None if self.batches is None else len(range(worker, self.batches, workers))
        # As long as all workers yield in turn, each has yielded this many of the skipped batches.
        empty = self.skip // workers
        raws: list[Raw] = []
        number = self._failed = 0
        for raw in self._raws(worker, workers) if quota != 0 else ():
            raws.append(raw)
            if len(raws) < self.batch_size:
                continue
            batch = {} if number < empty else self._batch(raws)
            if batch or number < empty:
                yield batch
                number += 1
            raws = []
            if number == quota:
                return
        if raws and not self.train:
            yield self._batch(raws)

    def _batch(self, raws: Sequence[Raw]) -> dict[str, Any]:
        """Decodes a batch. In training it keeps its size: good samples stand in for bad ones."""
        decoded = [self.decode(raw, self.epoch) for raw in raws]
        good = [sample for sample in decoded if sample is not None]
        self._failed = 0 if good else self._failed + len(raws)
        if self.train and good:
            good += [good[k % len(good)] for k in range(len(raws) - len(good))]
        return self.collate(good)

    def _raws(self, worker: int, workers: int) -> Iterator[Raw]:
        """Undecoded samples of this worker: one pass, or as many as an epoch of a fixed length takes."""
        if not self.train:
            yield from read_shards(self.shards[self.rank :: self.world_size][worker::workers], self.bad)
            return
        for number in itertools.count():
            order = np.random.default_rng([self.seed, self.epoch, number]).permutation(len(self.shards))
            mine = [self.shards[k] for k in order[self.rank :: self.world_size][worker::workers]]
            rng = random.Random(f"{self.seed} {self.epoch} {number} {self.rank} {worker}")
            count = 0
            for raw in shuffled(read_shards(mine, self.bad), self.shuffle, rng):
                count += 1
                yield raw
            if self.batches is None:
                return
            # That many failures in a row contain all samples of a pass.
            if self._failed < 2 * count:
                continue
            # None of this worker's samples can be read; it lives on those of the others.
            for raw in shuffled(read_shards(self.shards, self.bad), self.shuffle, rng):
                count += 1
                yield raw
            if self._failed >= 2 * count:
                shards = self.shards
                raise ValueError(f"No sample can be read from {len(shards)} shards such as {shards[0]!r}.")


def shuffled(samples: Iterable[Raw], size: int, rng: random.Random) -> Iterator[Raw]:
    """Shuffles a stream within a buffer of ``size`` samples."""
    buffer: list[Raw] = []
    for sample in samples:
        if len(buffer) < size:
            buffer.append(sample)
            continue
        place = rng.randrange(size)
        buffer[place], sample = sample, buffer[place]
        yield sample
    rng.shuffle(buffer)
    yield from buffer
