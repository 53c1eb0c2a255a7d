from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor

from cgspn.backbones.vision_transformer import EncoderTrace
from cgspn.blocks.vit_block import ViTBlock
from cgspn.losses import relative_error
from cgspn.modules.distillation import DistillationModule, compare_outputs
from cgspn.modules.image_text import PHOTO, Batch
from cgspn.modules.init_from import InitFrom
from cgspn.registry import BackboneConfig, TeacherConfig

FIRST_INPUTS = ("student", "teacher")


class Stage1Distillation(DistillationModule):
    """Module-wise feature distillation: every operator learns the teacher's operator in its place.

    Block i of teacher and student read the same input, the output of the teacher's block i-1; the loss is
    the squared distance between the two residual branches in units of the variance of the teacher's. Block 0
    reads the student's own embedding, as it will when assembled; its target is the teacher's branch and what
    the teacher's embedding has on top, such as positions, so that block 1 meets what it was trained on. Only
    the student's operators and the norms before them train, and no gradient crosses blocks; everything else
    starts from the teacher's weights and stays. Validation also runs the assembled student.

    Batches are ``{"image"[, "text"][, "label"]}``; texts and labels are only used by the evaluation.

    Args:
        student: The encoder that is trained, of its teacher's width, depth and patch size.
        teacher: The frozen teacher.
        init_from: Weights that the student starts from; None takes all but the operators from the teacher.
        first_input: What the student's block 0 reads: the ``student``'s own embedding, or the ``teacher``'s,
            whose branch alone is then the target.
        text_cache: File that keeps the embeddings of captions, so that each is read once; None keeps none.
        templates: Sentences with ``{}`` for a class name, averaged in zero-shot classification.
        lr: Learning rate of AdamW after the warm-up; it falls to 0 as a half cosine.
        weight_decay: Weight decay of parameters with more than one dimension.
        betas: AdamW's two decay rates.
        warmup_steps: Steps in which the learning rate rises linearly.

    Source: arXiv:2606.00746; the division by the variance and the target of block 0 are ours.
    """

    def __init__(
        self,
        student: BackboneConfig,
        teacher: TeacherConfig,
        init_from: InitFrom | None = None,
        first_input: Literal["student", "teacher"] = "student",
        text_cache: str | None = None,
        templates: Sequence[str] = PHOTO,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.95),
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(
            student,
            teacher,
            init_from,
            text_cache,
            "info_nce",
            templates,
            lr,
            weight_decay,
            betas,
            warmup_steps,
        )
        self.save_hyperparameters()
        if first_input not in FIRST_INPUTS:
            raise ValueError(f"Unknown first_input {first_input!r}. Valid: {', '.join(FIRST_INPUTS)}.")
        self.first_input = first_input
        self.requires_grad_(False)
        for block in self.encoder.blocks:
            block.norm1.requires_grad_(True)
            block.operator.requires_grad_(True)

    def block_errors(self, images: Tensor, teacher: EncoderTrace) -> list[Tensor]:
        """Relative error of every block's branch against its target, scalars in order of depth."""
        inputs, targets = dict(teacher.inputs), dict(teacher.branches)
        if self.first_input == "student":
            with torch.no_grad():
                inputs[0] = self.encoder.embed(images)
            targets[0] = targets[0] + (teacher.inputs[0] - inputs[0])
        return [
            relative_error(self.encoder.run(cast(ViTBlock, block).mix, inputs[i]), targets[i])
            for i, block in enumerate(self.encoder.blocks)
        ]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Sum of the blocks' relative errors, so that no block's gradient depends on their number."""
        errors = self.block_errors(batch["image"], self.frozen_teacher.trace(batch["image"]))
        self.log_errors("train", errors, len(batch["image"]))
        return torch.stack(errors).sum()

    @torch.no_grad()
    def evaluate(self, batch: Batch, prefix: str) -> None:
        """Relative errors, and the assembled student against the teacher and the texts."""
        images = batch["image"]
        teacher, student = self.frozen_teacher.trace(images), self(images)
        self.log_errors(prefix, self.block_errors(images, teacher), len(images))
        self.log_losses(prefix, compare_outputs(student, teacher), len(images))
        self.update_metrics(batch, student.summary, self.embed_captions(batch))

    def log_errors(self, prefix: str, errors: Sequence[Tensor], batch_size: int) -> None:
        """Logs each block's relative error and, as the loss, their mean."""
        losses = {f"relative_error/block_{i}": error.detach() for i, error in enumerate(errors)}
        losses["loss"] = torch.stack(list(losses.values())).mean()
        self.log_losses(prefix, losses, batch_size)
