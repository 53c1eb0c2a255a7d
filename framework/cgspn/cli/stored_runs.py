"""What ``--ckpt_path`` points to: whether it can be used, and the class and hyperparameters stored in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from cgspn.backbones.checkpoint_files import read_file
from cgspn.cli.classes import find_class
from cgspn.cli.errors import UsageError

LAST = Path("checkpoints", "last.ckpt")
# What Lightning's sharded checkpoints, which are folders, hold.
SHARDED = ("meta.pt", ".metadata")
# What Lightning reads besides the weights, always and when training goes on.
ALWAYS = {"pytorch-lightning_version": str, "state_dict": Mapping}
TO_RESUME = {
    "epoch": int,
    "global_step": int,
    "loops": Mapping,
    "optimizer_states": list,
    "lr_schedulers": list,
}


def read_stored_run(path: str, command: str, model_class: type | None) -> tuple[type | None, dict[str, Any]]:
    """The class and hyperparameters stored in a checkpoint.

    Args:
        path: The checkpoint.
        command: The command that will use it.
        model_class: The class that files and flags ask for; None means the checkpoint's.

    Raises:
        UsageError: If the file is missing, is no checkpoint, lacks what the command needs or holds another
            class.
    """
    file = Path(path)
    if path and file.is_dir():
        if any((file / name).exists() for name in SHARDED):
            return model_class, {}
        hint = f": {file / LAST}" if (file / LAST).is_file() else ""
        raise UsageError(f"Checkpoint {path} is a folder; give the path of a .ckpt file{hint}.")
    if not file.is_file():
        raise UsageError(f"Checkpoint {path} does not exist; give the path of a .ckpt file.")
    try:
        checkpoint = read_file(file)
    except ValueError as error:
        raise UsageError(str(error)) from None
    check(checkpoint, path, command)
    hyperparameters = dict(checkpoint.get("hyper_parameters", {}))
    stored = hyperparameters.pop("_class_path", None)
    hyperparameters.pop("_instantiator", None)
    if stored is None:
        return model_class, {}
    stored_class = find_class("model", str(stored), LightningModule)
    if model_class not in (None, stored_class):
        assert model_class is not None
        raise UsageError(
            f"{path} holds a {stored_class.__name__}, not a {model_class.__name__}; "
            "--ckpt_path continues the same class, init_from takes weights from another one."
        )
    return stored_class, hyperparameters


def check(checkpoint: Any, path: str, command: str) -> None:
    """Raises UsageError unless a checkpoint has all that Lightning will look for."""
    needed = {**ALWAYS, **(TO_RESUME if command == "fit" else {})}
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("hyper_parameters", {}), Mapping):
        raise UsageError(f"{path} is not a training run's checkpoint.")
    for key, kind in needed.items():
        if not isinstance(checkpoint.get(key), kind):
            what = "resume from" if command == "fit" else command
            hint = "; init_from takes weights alone" if command == "fit" else ""
            raise UsageError(f"{path} is no checkpoint to {what}: it has no {key}{hint}.")
    weights, optimizers = checkpoint["state_dict"], checkpoint.get("optimizer_states", [])
    if not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise UsageError(f"{path} is not a training run's checkpoint: its weights are not tensors.")
    if command == "fit" and not all(isinstance(o, Mapping) and "param_groups" in o for o in optimizers):
        raise UsageError(f"{path} is no checkpoint to resume from: its optimizer's state is incomplete.")
