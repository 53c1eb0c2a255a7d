"""What a run saves: ``last.ckpt`` again and again and on SIGINT and SIGTERM, ``best*.ckpt`` by a metric."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from cgspn.cli.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# With several ranks they agree on stopping by a reduction, too dear for every batch.
AGREE_EVERY = 16


@dataclasses.dataclass
class CheckpointConfig:
    """What is saved to ``checkpoints/`` of a run.

    Args:
        every_n_steps: Also write last.ckpt every so many optimizer steps; it is written after every epoch.
        monitor: Logged metric by which best.ckpt is kept; None keeps none.
        mode: Whether the smallest or the largest value is the best.
    """

    every_n_steps: int | None = None
    monitor: str | None = None
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        if self.every_n_steps is not None and self.every_n_steps < 1:
            raise ValueError(f"checkpoint.every_n_steps={self.every_n_steps} must be at least 1.")


def best_checkpoint(config: CheckpointConfig, folder: Path) -> list[ModelCheckpoint]:
    """The callback that keeps best.ckpt, if a metric is monitored."""
    if config.monitor is None:
        return []
    return [
        ModelCheckpoint(
            folder / "checkpoints",
            filename="best",
            monitor=config.monitor,
            mode=config.mode,
            enable_version_counter=False,
        )
    ]


class LastCheckpoint(Checkpoint):
    """Writes ``checkpoints/last.ckpt`` after every epoch, every n steps and before a signal ends training.

    SIGINT and SIGTERM let the current step finish, so that what is saved is consistent; a second one
    stops at once and saves nothing.

    Args:
        folder: The run folder.
        every_n_steps: Optimizer steps between two checkpoints within an epoch; None means none.
    """

    def __init__(self, folder: Path, every_n_steps: int | None = None) -> None:
        self.folder = folder
        self.every_n_steps = every_n_steps
        self.received: signal.Signals | None = None
        self.saved_step = 0
        self.process = os.getpid()

    @property
    def path(self) -> Path:
        """The checkpoint."""
        return self.folder / "checkpoints" / "last.ckpt"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Takes the folder from rank 0, which made it."""
        self.folder = trainer.strategy.broadcast(self.folder)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes over the signals; Lightning gives them back when it is done."""
        self.saved_step = trainer.global_step
        self.process = os.getpid()
        for number in SIGNALS:
            try:
                signal.signal(number, self._receive)
            except ValueError:  # Not in the main thread: whoever started the thread handles signals.
                return

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves every n steps and when a signal has come."""
        due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        if due and trainer.global_step != self.saved_step:
            self.save(trainer)
        self._stop_if_asked(trainer, batch_idx)

    def on_validation_batch_end(self, trainer: pl.Trainer, *arguments: Any, **keywords: Any) -> None:
        """Saves and stops when a signal has come during validation."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._stop_if_asked(trainer, keywords.get("batch_idx", 0))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves after every epoch."""
        self.save(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Reports a stop by signal even where the signal made something else fail first, such as a loader."""
        if self.received is not None and not isinstance(exception, Interrupted | KeyboardInterrupt):
            raise self._interrupted(trainer) from exception

    def save(self, trainer: pl.Trainer) -> None:
        """Writes the checkpoint, replacing the one before when it is complete."""
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.path)
            self.saved_step = trainer.global_step

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:
            # A loader's worker, forked with this handler: Ctrl-C is for the main process, which still
            # needs its data; SIGTERM is how the main process ends it.
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        print(
            f"\n{self.received.name}: saving after this step; once more stops at once.",
            file=sys.stderr,
            flush=True,
        )

    def _stop_if_asked(self, trainer: pl.Trainer, batch_idx: int) -> None:
        asked = self.received is not None
        if trainer.world_size > 1:
            if batch_idx % AGREE_EVERY:
                return
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            self.save(trainer)
            raise self._interrupted(trainer)

    def _interrupted(self, trainer: pl.Trainer) -> Interrupted:
        number = self.received or signal.SIGTERM
        resume = "no checkpoint was written yet"
        if self.path.exists():
            resume = f"resume with: cgspn fit -c {self.folder / 'config.yaml'} --ckpt_path {self.path}"
        return Interrupted(f"stopped by {number.name} at step {trainer.global_step}; {resume}", 128 + number)
