from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from cgspn.backbones.checkpoint_files import read_checkpoint
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
        content = read_checkpoint(weights)
        state, hyperparameters = content["state_dict"], content["hyper_parameters"]
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
