"""Loaders whose order is a function of (seed, epoch), so that a run can go on in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

Batch = dict[str, Any]


class Position(NamedTuple):
    """How far training has come.

    Attributes:
        epoch: The current epoch.
        batches: Batches of it that were trained on, as the trainer counts.
        finished: Whether the last batch of the epoch was among them.
    """

    epoch: int
    batches: int
    finished: bool = False


class Epochs(Protocol):
    """What decides the order of batches: a batch sampler or a streamed data set."""

    epoch: int
    skip: int

    def __len__(self) -> int: ...


class EpochLoader:
    """A loader that yields epoch after epoch and can start in the middle of one.

    Lightning saves and restores its state with the training loop's. The state is what was trained on: batches
    that were loaded ahead do not count.

    Args:
        loader: Loads what ``epochs`` describes.
        epochs: The part of ``loader`` that knows epoch and position.
        position: Tells how far training has come.
        order: The values that the order of samples depends on.
        placeholders: Whether ``loader`` yields something for each skipped batch, which is then dropped here.
        nothing: The message of the ValueError where an epoch has no batch.
    """

    def __init__(
        self,
        loader: DataLoader,
        epochs: Epochs,
        position: Callable[[], Position],
        order: Mapping[str, Any],
        placeholders: bool = False,
        nothing: str = "There are no training data.",
    ) -> None:
        self.loader, self.epochs, self.position = loader, epochs, position
        self.order, self.placeholders, self.nothing = dict(order), placeholders, nothing
        self._start: tuple[int, int, int] | None = None
        self._ahead = 0

    def __iter__(self) -> Iterator[Batch]:
        now, start = self.position(), self._start
        self._start = None
        epoch, skip, counted = start or (now.epoch, 0, now.batches)
        # Resuming at the end of an epoch of unknown length, the trainer goes on counting in the next one. It
        # also fetches ahead then, possibly before it has restored its counters.
        self._ahead = skip - (now.batches if self._has_length() else counted)
        self.epochs.epoch, self.epochs.skip = epoch, skip
        number = -1
        for number, batch in enumerate(self.loader):
            if not self.placeholders or number >= skip:
                yield batch
        if number < 0 and not skip:
            raise ValueError(self.nothing)

    def __len__(self) -> int:
        return len(self.epochs)

    def state_dict(self) -> dict[str, Any]:
        """How far training has come, and what the order depends on."""
        epoch, counted, finished = self.position()
        epoch, batches = (epoch + 1, 0) if finished else (epoch, counted + self._ahead)
        return {"epoch": epoch, "batches": batches, "counted": counted, "order": self.order}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where ``state`` was saved; warns and starts the epoch again if the order has changed."""
        if self._start is not None:
            # The DataModule and Lightning both restore it, where Lightning does.
            return
        found = state["order"]
        changed = [key for key in self.order if found.get(key) != self.order[key]]
        if changed:
            changes = ", ".join(f"{key} is {self.order[key]}, was {found.get(key)}" for key in changed)
            rank_zero_warn(f"The training data come in another order than in the checkpoint ({changes}).")
        counted = state.get("counted", state["batches"])
        self._start = (state["epoch"], 0 if changed else state["batches"], counted)

    def _has_length(self) -> bool:
        try:
            len(self)
        except TypeError:
            return False
        return True


class EvaluationLoader:
    """Yields the batches of ``loader`` in order, without those that lost all their samples.

    Args:
        loader: Loads the samples.
        length: Number of batches; None if it is not known.
        nothing: The message of the ValueError where no batch is left; None allows that.
    """

    def __init__(self, loader: DataLoader, length: int | None, nothing: str | None) -> None:
        self.loader, self.length, self.nothing = loader, length, nothing

    def __iter__(self) -> Iterator[Batch]:
        found = False
        for batch in self.loader:
            if batch:
                found = True
                yield batch
        if not found and self.nothing:
            raise ValueError(self.nothing)

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError("The number of batches is not known.")
        return self.length


class EpochBatches:
    """Batches of indices: a permutation by (seed, epoch), dealt out to the ranks.

    Args:
        size: Samples in the data set.
        batch_size: Samples in a batch of one rank.
        seed: Seed of the permutations; None keeps the order and the last, smaller batch.
        rank: This process.
        world_size: Number of processes; all get the same number of batches when ``seed`` is given.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int | None, rank: int = 0, world_size: int = 1
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = self.skip = 0

    def __len__(self) -> int:
        if self.seed is None:
            own = len(range(self.rank, self.size, self.world_size))
            return -(-own // self.batch_size)
        return self.size // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yields batches of pairs (index, epoch); the epoch seeds the augmentation."""
        order = np.arange(self.size)
        if self.seed is not None:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        own = order[self.rank :: self.world_size].tolist()
        for number in range(self.skip, len(self)):
            batch = own[number * self.batch_size : (number + 1) * self.batch_size]
            yield [(index, self.epoch) for index in batch]
