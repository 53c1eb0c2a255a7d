"""Weights of encoders: reading them from files, loading them strictly, starting a student from a teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import safetensors.torch
import torch
from torch import Tensor, nn

from cgspn.backbones.checkpoint_files import read_tensors
from cgspn.backbones.positions import LearnedPositions

if TYPE_CHECKING:
    from cgspn.backbones.vision_transformer import VisionEncoder

ARCHITECTURE = (
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_dim",
    "patch_size",
    "activation",
    "norm_eps",
    "pre_norm",
    "layer_scale",
    "swiglu",
)


def load_part(path: str | Path, part: str = "") -> dict[str, Tensor]:
    """Reads the tensors of one part of a checkpoint.

    Args:
        path: A ``.ckpt`` (or ``.pt``, ``.pth``) file, read with ``weights_only``, or a ``.safetensors`` file.
        part: Prefix of the wanted names, such as ``encoder`` for ``encoder.norm.weight``; empty means all.

    Returns:
        Tensors on the CPU by name, the prefix removed.

    Raises:
        ValueError: If the file is missing, cannot be read or has no such part.
    """
    tensors = read_tensors(path)
    if not part:
        return tensors
    prefix = part + "."
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if not found:
        parts = sorted({name.split(".")[0] for name in tensors})
        raise ValueError(f"{path} has no part {part!r}; valid: {', '.join(parts) or 'none'}.")
    return found


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a ``.safetensors`` file, readable by whoever may read other new files here."""
    path.touch()
    mode = path.stat().st_mode
    safetensors.torch.save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, path, dict(metadata)
    )
    # The library replaces the file by one that only its owner can read.
    path.chmod(mode)


def load_weights(
    module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path = "the checkpoint"
) -> None:
    """Loads every tensor of ``module``; learned positions of another grid are resampled.

    Args:
        module: What is loaded in place.
        tensors: Tensors by name, as from ``load_part``.
        source: What error messages call the place they come from.

    Raises:
        ValueError: If a tensor is missing, unknown, of another shape or not finite; the message names the
            first one. Nothing is loaded then.
    """
    own = module.state_dict()
    tensors = dict(tensors)
    for name, module_tensor in own.items():
        if name not in tensors:
            raise ValueError(f"{source} lacks {name} {shape(module_tensor)}: it belongs to another model.")
        if (
            name.split(".")[-2:] == ["pos_embed", "weight"]
            and tensors[name].shape[3:] == module_tensor.shape[3:]
        ):
            positions = cast(LearnedPositions, module.get_submodule(name.removesuffix(".weight")))
            tensors[name] = positions.resampled(tensors[name])
        if tensors[name].shape != module_tensor.shape:
            raise ValueError(
                f"{source} has {name} {shape(tensors[name])}, the model {shape(module_tensor)}: "
                "it belongs to another model."
            )
    if unknown := [name for name in tensors if name not in own]:
        raise ValueError(
            f"{source} has {unknown[0]} {shape(tensors[unknown[0]])}, which the model lacks: "
            "it belongs to another model."
        )
    if broken := [name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]:
        raise ValueError(f"{source} has values in {broken[0]} that are not finite: its training diverged.")
    module.load_state_dict(tensors)


def shape(tensor: Tensor) -> str:
    """The shape in words, such as ``(3, 4)``."""
    return str(tuple(tensor.shape))


@dataclasses.dataclass(frozen=True)
class InitReport:
    """Names of the student's tensors ``copied`` and ``kept``, and of the teacher's that were ``unused``."""

    copied: tuple[str, ...]
    kept: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        copied, kept, unused = len(self.copied), len(self.kept), len(self.unused)
        return f"{copied} tensors copied from the teacher, {kept} kept, {unused} of the teacher's unused"


def architecture(encoder: VisionEncoder) -> dict[str, Any]:
    """What two encoders must have in common for one's weights to mean the same in the other."""
    found = {name: encoder.config[name] for name in ARCHITECTURE}
    found["mlp_dim"] = found["mlp_dim"] or 4 * encoder.embed_dim
    found["layer_scale"] = found["layer_scale"] is not None
    if encoder.pos_embed is not None:
        found["pos_resampling"] = encoder.pos_embed.resampling
    return found


def init_from_teacher(student: VisionEncoder, teacher: VisionEncoder) -> InitReport:
    """Copies the teacher's weights into its twin, all but the operators and the norms before them.

    Where a block's operator is of the teacher's own kind, it is copied with its norm too.

    Args:
        student: Encoder that is changed in place.
        teacher: Encoder of the same architecture up to operators, positions, head and classifier.

    Returns:
        What was copied and what was not.

    Raises:
        ValueError: If the two differ in width, depth, heads, MLP width, patch size, activation, norm
            epsilon, pre-norm, LayerScale, SwiGLU or, where both have positions, in how these are
            resampled; the message gives both values.
    """
    ours, theirs = architecture(student), architecture(teacher)
    for name in ours:
        if name in theirs and ours[name] != theirs[name]:
            raise ValueError(
                f"The student has {name}={ours[name]}, its teacher {theirs[name]}; "
                "set the student's to the teacher's."
            )
    own, given = student.state_dict(), teacher.state_dict()
    if student.pos_embed is not None and teacher.pos_embed is not None:
        given["pos_embed.weight"] = student.pos_embed.resampled(given["pos_embed.weight"])
    skipped = tuple(
        f"blocks.{i}.{part}."
        for i, (a, b) in enumerate(zip(student.blocks, teacher.blocks, strict=True))
        if type(a.operator) is not type(b.operator)
        for part in ("operator", "norm1")
    )
    copied = [
        name
        for name, tensor in own.items()
        if not name.startswith(skipped) and name in given and given[name].shape == tensor.shape
    ]
    with torch.no_grad():
        for name in copied:
            own[name].copy_(given[name])
    return InitReport(
        tuple(copied),
        tuple(name for name in own if name not in copied),
        tuple(name for name in given if name not in copied),
    )
