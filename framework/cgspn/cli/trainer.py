"""``cgspn fit | validate | test | predict``: LightningCLI with cgspn's config rules and run folders."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.model_helpers import is_overridden

import cgspn
import cgspn.data.folder
import cgspn.data.shards
import cgspn.modules
import cgspn.segmentation
from cgspn import registry
from cgspn.cli import TRAINER_COMMANDS
from cgspn.cli.checkpoints import CheckpointConfig, LastCheckpoint, best_checkpoint
from cgspn.cli.classes import public_subclasses
from cgspn.cli.errors import UsageError, one_line, plain_warnings
from cgspn.cli.nodes import expand
from cgspn.cli.runs import RunConfig, mark_latest, new_run_folder
from cgspn.cli.summary import PartSummary
from cgspn.errors import unknown_name

LOADERS = {
    "fit": "train_dataloader",
    "validate": "val_dataloader",
    "test": "test_dataloader",
    "predict": "predict_dataloader",
}


def run_trainer(command: str, arguments: Sequence[str]) -> int:
    """Runs one of the trainer's commands and returns the exit code."""
    registry.load_plugins()
    quieten()
    # The import of Lightning has put a form of its own in the place of ours.
    with plain_warnings():
        with tempfile.TemporaryDirectory() as scratch:
            # Help needs no model.
            if not any(a in ("-h", "--help") or ".help" in a for a in arguments):
                arguments = expand(command, arguments, Path(scratch))
            cli = CLI(command, arguments)
        cli.execute()
    return 0


class CLI(LightningCLI):
    """LightningCLI for one command: parses, builds everything and makes the run's folder.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        arguments: Arguments after the command, as ``expand`` returns them.
    """

    def __init__(self, command: str, arguments: Sequence[str]) -> None:
        self.command = command
        super().__init__(
            save_config_callback=None,
            seed_everything_default=0,
            parser_kwargs={
                "prog": f"cgspn {command}",
                "description": f"{TRAINER_COMMANDS[command]}.",
                "dump_header": [f"cgspn=={cgspn.__version__}"],
                "exit_on_error": False,
                "allow_abbrev": False,
            },
            args=list(arguments),
            # With run=True LightningCLI lets the hyperparameters of a checkpoint win over files and flags.
            run=False,
            auto_configure_optimizers=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the options for checkpoints and run folders."""
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            help="Checkpoint to resume from or to evaluate; its class must be the same.",
        )
        parser.add_argument("--run", type=RunConfig, default=RunConfig(), help="The folder of the run.")
        parser.add_argument(
            "--checkpoint", type=CheckpointConfig, default=CheckpointConfig(), help="What is saved."
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses arguments, without Lightning's warning that they are not ``sys.argv``."""
        try:
            self.config = parser.parse_args(args)
        except jsonargparse.ArgumentError as error:
            raise UsageError(explain(error, list(parser.get_defaults().keys()))) from None

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Makes the run folder and builds the trainer that writes to it.

        Raises:
            UsageError: If the model cannot do what it is asked for, or there are not as many devices.
        """
        options = self.config_init
        if self.command == "predict" and not is_overridden("predict_step", self.model):
            name = type(self.model).__name__
            raise UsageError(f"{name} predicts nothing; `cgspn features` writes an encoder's features.")
        if self.datamodule is None and not is_overridden(LOADERS[self.command], self.model):
            known = ", ".join(sorted(public_subclasses(pl.LightningDataModule)))
            raise UsageError(
                f"No data are given; name a config file with -c, or a class with --data: {known}."
            )
        check_devices(options.trainer.accelerator, options.trainer.devices)
        self.folder = new_run_folder(options.run)
        try:
            return super().instantiate_trainer(**self._trainer_arguments(), **kwargs)
        except Exception:
            with contextlib.suppress(OSError):
                self.folder.rmdir()  # Nothing is in it yet.
            raise

    def _trainer_arguments(self) -> dict[str, Any]:
        options = self.config_init
        trainer = options.trainer
        callbacks = as_list(trainer.callbacks)
        if trainer.enable_checkpointing is not False and self.command == "fit":
            # The one that cannot fail goes first.
            callbacks.append(LastCheckpoint(self.folder, options.checkpoint.every_n_steps))
            callbacks += best_checkpoint(options.checkpoint, self.folder)
        summary = any(isinstance(callback, ModelSummary) for callback in callbacks)
        if trainer.enable_model_summary is not False and self.command == "fit" and not summary:
            callbacks.append(PartSummary())
        loggers: list[Logger] | bool = False
        if trainer.logger is not False:
            chosen = [] if trainer.logger in (None, True) else as_list(trainer.logger)
            loggers = [CSVLogger(self.folder, "", ""), TensorBoardLogger(self.folder, "", ""), *chosen]
        return {"callbacks": callbacks, "logger": loggers, "default_root_dir": str(self.folder)}

    def execute(self) -> None:
        """Runs the command and writes its metrics into the run folder."""
        if self.trainer.is_global_zero:
            (self.folder / "config.yaml").write_text(self.parser.dump(self.config, skip_none=False))
            print(f"run folder: {self.folder}", flush=True)
        arguments: dict[str, Any] = {"datamodule": self.datamodule, "ckpt_path": self.config.ckpt_path}
        if self.command != "fit" and self.config.ckpt_path is None:
            warnings.warn(
                "no --ckpt_path is given: the model is evaluated as it was initialised", stacklevel=1
            )
        if self.command == "predict":
            arguments["return_predictions"] = False
        getattr(self.trainer, self.command)(self.model, weights_only=True, **arguments)
        if self.trainer.is_global_zero:
            if self.command != "fit":
                mark_latest(self.folder, self.command)
            metrics = {name: value.item() for name, value in self.trainer.callback_metrics.items()}
            if metrics:
                (self.folder / "metrics.json").write_text(
                    json.dumps(metrics, indent=2, sort_keys=True) + "\n"
                )
            print(f"run folder: {self.folder}", flush=True)


def explain(error: jsonargparse.ArgumentError, options: list[str]) -> str:
    """One line for a parser's error; an unknown option gets its nearest match and its neighbours."""
    message = " ".join(str(error).split())
    if message.startswith("Parser key"):
        return one_line(error)
    if match := re.search(r"unrecognized arguments: --([\w.]+)|Option '(.+?)' is not", message):
        name = match[1] or match[2]
    elif match := re.search(r"Group '(.+?)' does not accept option '(.+?)'", message):
        name = f"{match[1]}.{match[2]}"
    else:
        return one_line(error)
    group = name.rpartition(".")[0]
    valid = [option.rpartition(".")[2] for option in options if option.rpartition(".")[0] == group]
    if group and valid:
        return f"{group}: {unknown_name('option', name.rpartition('.')[2], valid)}"
    return unknown_name("option", name.partition(".")[0], {option.partition(".")[0] for option in options})


def check_devices(accelerator: Any, devices: Any) -> None:
    """Raises UsageError if more processes are asked for than a CPU can run side by side."""
    most = max(8, os.cpu_count() or 1)
    if accelerator == "cpu" and str(devices).isdecimal() and int(devices) > most:
        raise UsageError(
            f"trainer.devices={devices} processes are too many for this CPU; valid: 1 to {most}."
        )


def as_list(value: Any) -> list[Any]:
    """None as an empty list, a single object as a list of one."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


UNINTERESTING = (
    "\N{ELECTRIC LIGHT BULB}",
    "`weights_only` was not set",
    "TPU available",
    "Trainer already configured with model summary callbacks",
    "Loading `train_dataloader` to estimate",
)


def quieten() -> None:
    """Drops messages that say nothing to their reader."""
    for message in (
        ".*Experiment logs directory .* exists and is not empty",  # The run folder; config.yaml is in it.
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated",
        # Frozen parts are in eval mode on purpose.
        ".*Found \\d+ module\\(s\\) in eval mode at the start of training",
        ".*does not have many workers which may be a bottleneck",
        ".*callbacks used to create the checkpoint need to be provided",  # They save; evaluation does not.
    ):
        warnings.filterwarnings("ignore", message)
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.pytorch.trainer.connectors.checkpoint_connector",
    ):
        logging.getLogger(name).addFilter(is_worth_reading)


def is_worth_reading(record: logging.LogRecord) -> bool:
    """Whether a log record is neither an advertisement nor an echo of what cgspn sets itself."""
    return not record.getMessage().startswith(UNINTERESTING)
