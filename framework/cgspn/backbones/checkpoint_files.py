"""Reading files with weights in them, without running code that they may hold."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Reads the tensors of a ``.safetensors`` file, of a checkpoint or of a state dict, on the CPU, by name.

    Raises:
        ValueError: If the file is missing, cannot be read or holds no tensors by name.
    """
    path = existing(path)
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except Exception as error:
            raise ValueError(unreadable(path, error)) from None
    content = read_file(path)
    found = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} is not a readable checkpoint: it holds no tensors by name.")
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a training run's checkpoint: ``state_dict``, ``hyper_parameters`` and whatever else is there.

    Raises:
        ValueError: If the file is missing, cannot be read, or has neither weights nor hyperparameters.
    """
    content = read_file(path)
    if not isinstance(content, dict) or not isinstance(content.get("hyper_parameters"), Mapping):
        raise ValueError(f"{path} is not a training run's checkpoint: it has no hyperparameters.")
    state = content.get("state_dict")
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{path} is not a training run's checkpoint: it has no weights.")
    return content


def read_file(path: str | Path) -> Any:
    """What ``torch.save`` wrote; tensors stay on disk until they are used.

    Raises:
        ValueError: If the file is missing, is damaged or holds more than tensors and plain data.
    """
    path = existing(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except MemoryError:
        raise
    except Exception as error:  # A damaged file fails in as many ways as it has bytes.
        raise ValueError(unreadable(path, error)) from None


def existing(path: str | Path) -> Path:
    """The path of a file.

    Raises:
        ValueError: If there is none.
    """
    if not Path(path).is_file():
        raise ValueError(f"There is no weight file {path}{', only a folder' * Path(path).is_dir()}.")
    return Path(path)


def unreadable(path: Path, error: Exception) -> str:
    """Why a file cannot be read, without advice to read it in an unsafe way."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    if isinstance(error, pickle.UnpicklingError):
        reason = "it is damaged, or holds more than tensors and plain data"
    elif path.stat().st_size == 0:
        reason = "it is empty"
    return f"{path} is not a readable checkpoint: {reason.rstrip('.')}."
