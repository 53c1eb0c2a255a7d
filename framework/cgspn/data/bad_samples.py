"""Counting samples that cannot be read; training goes on without them."""

from __future__ import annotations

import multiprocessing
import warnings


class BadSampleWarning(UserWarning):
    """A sample or a member of a shard could not be read and was left out."""


class BadSamples:
    """A count that the processes of a loader share; the first few bad samples are named in warnings."""

    SHOWN = 5

    def __init__(self) -> None:
        self._count = multiprocessing.get_context("spawn").Value("q", 0)

    @property
    def count(self) -> int:
        """Number of bad samples met so far."""
        return int(self._count.value)

    def add(self, where: str, reason: object) -> None:
        """Counts one and warns, naming the sample and the reason."""
        with self._count.get_lock():
            self._count.value += 1
            number = self._count.value
        if number <= self.SHOWN:
            line = " ".join(str(reason).split()) or type(reason).__name__
            last = "; further ones are only counted" if number == self.SHOWN else ""
            warnings.warn(
                f"bad sample {number} left out: {where}: {line[:200]}{last}", BadSampleWarning, stacklevel=2
            )
