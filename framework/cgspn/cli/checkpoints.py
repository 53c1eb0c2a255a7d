"""What a run saves: ``last.ckpt`` again and again and on SIGINT and SIGTERM, ``best*.ckpt`` by a metric."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from torch import Tensor

from cgspn.cli.errors import Interrupted, UsageError
from cgspn.cli.random_state import random_state, set_random_state
from cgspn.cli.runs import mark_latest

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
    stops at once and saves nothing. A run whose loss or weights are no longer finite ends with an error,
    and nothing is saved over the checkpoint before.

    The state of the random number generators is saved too: a resumed run draws what the uninterrupted one
    would have drawn.

    Args:
        folder: The run folder.
        every_n_steps: Optimizer steps between two checkpoints within an epoch; None means none.
    """

    def __init__(self, folder: Path, every_n_steps: int | None = None) -> None:
        self.folder = folder
        self.every_n_steps = every_n_steps
        self.received: signal.Signals | None = None
        self.training = False
        self.saved_step = 0
        self.process = os.getpid()
        self.losses: list[Tensor] = []
        self.random_state: dict[str, Any] | None = None

    @property
    def path(self) -> Path:
        """The checkpoint."""
        return self.folder / "checkpoints" / "last.ckpt"

    def state_dict(self) -> dict[str, Any]:
        """The state of the random number generators of this process (of rank 0)."""
        return random_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state until training starts: building and checking things draws numbers too."""
        self.random_state = state_dict

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Takes the folder from rank 0, which made it."""
        self.folder = trainer.strategy.broadcast(self.folder)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes over the signals; Lightning gives them back when it is done."""
        self.process = os.getpid()
        self._take_signals()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on there is something to save."""
        self.training = True
        self.saved_step = trainer.global_step
        # Lightning has put a handler of its own before this one, which ends training without an error.
        self._take_signals()
        if self.random_state is not None and trainer.world_size == 1:
            set_random_state(self.random_state)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves every n steps and when a signal has come."""
        if isinstance(outputs, Mapping) and isinstance(outputs.get("loss"), Tensor):
            self.losses.append(outputs["loss"].detach())
        if len(self.losses) >= trainer.log_every_n_steps:  # type: ignore[attr-defined]
            self.check_losses(trainer)
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
        """Writes the checkpoint, replacing the one before when it is complete.

        Raises:
            UsageError: If the loss or a weight is not finite, or the file cannot be written. The checkpoint
                before stays.
        """
        self.check_losses(trainer)
        self.check_weights(trainer)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        # Lightning writes to a temporary folder and moves the file, which copies it where that is another
        # file system: killed then, it would leave half a file in the place of the one before.
        partial = self.path.with_name(f".{self.path.name}")
        try:
            trainer.save_checkpoint(partial)
        except OSError as error:
            partial.unlink(missing_ok=True)
            step, reason = trainer.global_step, error.strerror or error
            raise UsageError(
                f"The checkpoint of step {step} cannot be written to {self.folder}: {reason}; {self._kept()}."
            ) from error
        if trainer.is_global_zero:
            if self.path.is_dir():
                shutil.rmtree(self.path)
            partial.replace(self.path)
            mark_latest(self.folder, "fit")
        self.saved_step = trainer.global_step

    def check_losses(self, trainer: pl.Trainer) -> None:
        """Raises UsageError if one of the losses since the last check is not finite, on any rank."""
        losses, self.losses = self.losses, []
        finite = [bool(flag) for flag in torch.stack(losses).isfinite().tolist()] if losses else []
        # In float16 a loss may overflow: the scaler then leaves the step out.
        failed = not all(finite) and trainer.precision != "16-mixed"
        if trainer.strategy.reduce_boolean_decision(failed, all=False):
            step = trainer.global_step
            if failed:
                late = (len(finite) - 1 - finite.index(False)) // trainer.accumulate_grad_batches
                step -= late
            value = losses[finite.index(False)].item() if failed else "not finite on another rank"
            raise self._diverged(f"the loss is {value} at step {step}")

    def check_weights(self, trainer: pl.Trainer) -> None:
        """Raises UsageError if a trained weight is not finite, on any rank."""
        parameters = trainer.lightning_module.named_parameters()
        broken = [n for n, p in parameters if p.requires_grad and not p.detach().isfinite().all()]
        if trainer.strategy.reduce_boolean_decision(bool(broken), all=False):
            name = broken[0] if broken else "a weight"
            raise self._diverged(f"{name} is not finite at step {trainer.global_step}")

    def _diverged(self, what: str) -> UsageError:
        return UsageError(
            f"Training has diverged: {what}; {self._kept()}. Try a smaller model.lr, more warm-up or "
            "--trainer.gradient_clip_val; --trainer.detect_anomaly=true finds the operation."
        )

    def _kept(self) -> str:
        return f"{self.path} is of step {self.saved_step}" if self.path.exists() else "nothing was saved"

    def _take_signals(self) -> None:
        for number in SIGNALS:
            try:
                signal.signal(number, self._receive)
            except ValueError:  # Not in the main thread: whoever started the thread handles signals.
                return

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
        if not self.training:
            raise Interrupted(f"stopped by {self.received.name} before training began.", 128 + number)
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
