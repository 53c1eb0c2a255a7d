"""What the stages that learn from a teacher share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from cgspn.backbones.vision_transformer import EncoderOutput, EncoderTrace
from cgspn.backbones.weights import init_from_teacher
from cgspn.modules.image_text import Batch, ContrastiveName, ImageTextModule
from cgspn.modules.init_from import InitFrom
from cgspn.registry import TEACHERS, BackboneConfig, TeacherConfig
from cgspn.teachers import CaptionTable, Teacher


class DistillationModule(ImageTextModule):
    """A student encoder and a frozen teacher.

    The teacher is built when a run starts and is no submodule: it is in no checkpoint, no optimizer and no
    strategy's wrapper, and a checkpoint of the student can be read without it.

    Args:
        student: The student's config node.
        teacher: The teacher's config node.
        init_from: Weights that the student starts from; None takes what it shares with the teacher.
        text_cache: File that keeps the embeddings of captions, so that each is read once; None keeps none.
        contrastive: ``info_nce`` or ``sigmoid``.
        templates: Sentences with ``{}`` for a class name, averaged in zero-shot classification.
        lr: Learning rate of AdamW after the warm-up; it falls to 0 as a half cosine.
        weight_decay: Weight decay of parameters with more than one dimension.
        betas: AdamW's two decay rates.
        warmup_steps: Steps in which the learning rate rises linearly.
    """

    teacher: Teacher | None

    def __init__(
        self,
        student: BackboneConfig,
        teacher: TeacherConfig,
        init_from: InitFrom | None,
        text_cache: str | None,
        contrastive: ContrastiveName,
        templates: Sequence[str],
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        warmup_steps: int,
    ) -> None:
        super().__init__(student, init_from, contrastive, templates, lr, weight_decay, betas, warmup_steps)
        TEACHERS.check(teacher)
        self.teacher_node: Mapping[str, Any] = teacher
        object.__setattr__(self, "teacher", None)
        self.text_cache = text_cache
        self.captions: CaptionTable | None = None

    def setup(self, stage: str) -> None:
        """Builds the teacher, then sets the weights that the student starts from."""
        if self.teacher is None:
            self.set_teacher(TEACHERS.build(self.teacher_node))
        super().setup(stage)

    def set_teacher(self, teacher: Teacher) -> None:
        """Makes ``teacher`` the one to learn from, without registering it as a submodule."""
        if (teacher.mean, teacher.std) != (self.encoder.mean, self.encoder.std):
            raise ValueError(
                f"The student normalises images by mean={self.encoder.mean}, std={self.encoder.std}, its "
                f"teacher by mean={teacher.mean}, std={teacher.std}; set the student's to the teacher's."
            )
        object.__setattr__(self, "teacher", teacher)
        if self.text_cache is not None:
            if teacher.text is None:
                raise ValueError(f"The teacher has no text tower; leave out text_cache={self.text_cache!r}.")
            self.captions = CaptionTable(self.text_cache, teacher.text)

    def initialise(self) -> None:
        """Copies what the student shares with the teacher, or loads ``init_from``."""
        if self.init_from is None:
            rank_zero_info(str(init_from_teacher(self.encoder, self.frozen_teacher.encoder)))
        super().initialise()

    @property
    def frozen_teacher(self) -> Teacher:
        """The teacher, which exists from ``setup`` on."""
        if self.teacher is None:
            raise ValueError(f"{type(self).__name__} has no teacher yet: call setup or set_teacher first.")
        return self.teacher

    @property
    def text_encoder(self) -> Callable[[Sequence[str]], Tensor] | None:
        """The teacher's text tower, if it has one, behind ``text_cache``."""
        if self.captions is not None:
            return self.captions.encode
        teacher = self.frozen_teacher
        return None if teacher.text is None else teacher.encode_text

    def save_captions(self) -> None:
        """Keeps the embeddings of captions that were new."""
        if self.captions is not None:
            self.captions.save()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also keeps new captions."""
        super().on_save_checkpoint(checkpoint)
        self.save_captions()

    def teardown(self, stage: str) -> None:
        """Keeps new captions."""
        self.save_captions()

    def move_teacher(self) -> None:
        """Takes the teacher to where the student is.

        Raises:
            ValueError: If the student is not in float32, as its teacher and the statistics of taps are.
        """
        if self.dtype != torch.float32:
            raise ValueError(
                f"trainer.precision={self.trainer.precision} makes the student {self.dtype}, its teacher is "
                "float32; valid: 32-true, 16-mixed, bf16-mixed."
            )
        self.frozen_teacher.to(self.device)

    on_fit_start = on_validation_start = on_test_start = move_teacher

    def forward(self, images: Tensor) -> EncoderOutput:
        """The student's summary (B, C) and features (B, H, W, C) of normalised images."""
        return self.encoder.encode(images)

    def embed_captions(self, batch: Batch) -> Tensor | None:
        """Embeddings (B, C) of the batch's captions, or None without captions or text tower."""
        if "text" not in batch or self.text_encoder is None:
            return None
        return self.text_encoder(batch["text"])


def compare_outputs(
    student: EncoderOutput | EncoderTrace, teacher: EncoderOutput | EncoderTrace
) -> dict[str, Tensor]:
    """Cosines between student and teacher: of features, per token, and of summaries; means over the batch."""
    cosines = {}
    for name in EncoderOutput._fields:
        ours, theirs = getattr(student, name).float(), getattr(teacher, name).float()
        if ours.shape == theirs.shape:
            cosines[f"{name}_cosine"] = F.cosine_similarity(ours, theirs, dim=-1).mean()
    return cosines
