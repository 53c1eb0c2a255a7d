from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cgspn.backbones.weights import load_part, load_weights
from cgspn.registry import BACKBONES, TEACHERS
from cgspn.teachers.base import Teacher, TextTower
from cgspn.text import TextConfig, TextTransformer


@TEACHERS.register_module(name="cgspn")
class CheckpointTeacher(Teacher):
    """A model that the project itself trained, at any stage, read from a run's checkpoint.

    The architecture comes from the checkpoint's hyperparameters. A student that was trained against a
    frozen text tower does not hold one: it is then taken from the teacher that the checkpoint names.

    Args:
        weights: Path of the checkpoint, such as ``runs/teacher/0/checkpoints/last.ckpt``.
        part: Which of the checkpoint's encoders to take.

    Raises:
        ValueError: If the file is missing, is not a checkpoint of this project or lacks the part.
    """

    def __init__(self, weights: str, part: str = "encoder") -> None:
        state, hyperparameters = read_checkpoint(weights)
        node = hyperparameters.get(part, hyperparameters.get("student"))
        if not isinstance(node, Mapping):
            raise ValueError(f"{weights} does not say what its part {part!r} is: no such hyperparameter.")
        encoder = BACKBONES.build(node)
        load_weights(encoder, load_part(weights, part), weights)
        scale, bias = state.get("logit_scale"), state.get("logit_bias")
        super().__init__(
            encoder,
            text_tower(weights, state, hyperparameters, encoder.summary_dim),
            None if scale is None else scale.item(),
            None if bias is None else bias.item(),
        )


def read_checkpoint(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads the weights and hyperparameters of a checkpoint, without running code stored in it.

    Raises:
        ValueError: If the file is missing or is not a checkpoint of a training run.
    """
    if not Path(path).is_file():
        raise ValueError(f"There is no checkpoint {path}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is not a readable checkpoint: {reason}") from error
    if not isinstance(content, dict) or not {"state_dict", "hyper_parameters"} <= content.keys():
        raise ValueError(f"{path} is not a training run's checkpoint: it has no hyperparameters.")
    return content["state_dict"], content["hyper_parameters"]


def text_tower(
    weights: str, state: Mapping[str, Any], hyperparameters: Mapping[str, Any], output_dim: int
) -> TextTower | None:
    """The text tower that a checkpoint holds, or else its teacher's, or None where there was none."""
    text: TextTower | None = None
    if hyperparameters.get("teacher") is not None:
        text = TEACHERS.build(hyperparameters["teacher"]).text
    elif "text" in hyperparameters:
        text = TextTransformer(output_dim, TextConfig(**hyperparameters["text"]))
    if isinstance(text, nn.Module) and any(name.startswith("text.") for name in state):
        load_weights(text, load_part(weights, "text"), weights)
    return text
