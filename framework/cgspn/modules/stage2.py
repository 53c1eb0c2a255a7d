from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cgspn.backbones.vision_transformer import EncoderTrace
from cgspn.losses import KLDirection, TapLoss
from cgspn.losses.checks import check_positive
from cgspn.modules.distillation import DistillationModule, compare_outputs
from cgspn.modules.image_text import PHOTO, Batch, ContrastiveName
from cgspn.modules.init_from import InitFrom
from cgspn.registry import BackboneConfig, TeacherConfig
from cgspn.teachers import Teacher

TAPS = ("pp", "pb")


@dataclasses.dataclass(frozen=True)
class TapConfig:
    """Where and how a student's features are held to its teacher's.

    ``L_tap = MSE(adapter(v_s), v_t) + kl * KL(P(adapter(v_s)) || P(v_t))``, averaged over the tapped blocks.

    Args:
        pp: Weight alpha of the taps on operators' residual branches; 0 leaves them out.
        pb: Weight beta of the taps on blocks' outputs; 0 leaves them out.
        kl: Weight lambda of the KL term inside a tap.
        temperature: Temperature tau of the softmax over a token's channels.
        kl_direction: Which side comes first in the KL divergence.
        standardize: Whether features are standardised per channel by running statistics of the teacher's,
            a branch's deviation counting as at least a tenth of its block output's.
        blocks: Tapped blocks, negative ones counted from the end; None means the last one of each quarter.
    """

    pp: float = 1.0
    pb: float = 1.0
    kl: float = 0.1
    temperature: float = 1.0
    kl_direction: KLDirection = "student_teacher"
    standardize: bool = True
    blocks: Sequence[int] | None = None

    def __post_init__(self) -> None:
        for name in ("pp", "pb", "kl"):
            check_positive(f"taps.{name}", getattr(self, name), zero=True)
        check_positive("taps.temperature", self.temperature)

    def indices(self, depth: int) -> list[int]:
        """The tapped blocks of an encoder with ``depth`` blocks, ascending.

        Raises:
            ValueError: If there is no such block.
        """
        if self.blocks is None:
            return sorted({-(-depth * quarter // 4) - 1 for quarter in (1, 2, 3, 4)})
        if not self.blocks and (self.pp or self.pb):
            raise ValueError(
                "taps.blocks names no block; set taps.pp and taps.pb to 0 to train without taps."
            )
        if outside := [block for block in self.blocks if not -depth <= block < depth]:
            raise ValueError(f"There is no block {outside[0]} to tap. Valid: {-depth} to {depth - 1}.")
        return sorted({block % depth for block in self.blocks})


DEFAULT_TAPS = TapConfig()


class Stage2Contrastive(DistillationModule):
    """End-to-end training against texts, with taps that hold features to the teacher's.

    The loss is ``alpha * L_PP + beta * L_PB + gamma * L_contrastive``. All of the student trains. Adapters
    and teacher statistics belong to the run, not to the encoder: they are not part of ``encoder``.

    Batches are ``{"image", "text"[, "label"]}``; texts may be missing when ``contrastive_weight`` is 0.

    Args:
        student: The encoder that is trained.
        teacher: The frozen teacher; its text tower embeds the captions.
        init_from: Weights that the student starts from, as a rule those of stage 1; None takes all but the
            operators from the teacher.
        taps: Weights, places and form of the taps.
        contrastive: ``info_nce`` (CLIP) or ``sigmoid`` (SigLIP).
        contrastive_weight: Weight gamma of the contrastive loss.
        train_text: Whether a copy of the teacher's text tower trains along, instead of a frozen one.
        text_cache: File that keeps the frozen tower's embeddings of captions, so that each is read once; None
            keeps none.
        templates: Sentences with ``{}`` for a class name, averaged in zero-shot classification.
        lr: Learning rate of AdamW after the warm-up; it falls to 0 as a half cosine.
        weight_decay: Weight decay of parameters with more than one dimension.
        betas: AdamW's two decay rates.
        warmup_steps: Steps in which the learning rate rises linearly.

    Source: arXiv:2606.00746. Which blocks are tapped, the weights and the temperature are ours, as are the
    standardisation and the start of the adapters.
    """

    def __init__(
        self,
        student: BackboneConfig,
        teacher: TeacherConfig,
        init_from: InitFrom | None = None,
        taps: TapConfig = DEFAULT_TAPS,
        contrastive: ContrastiveName = "info_nce",
        contrastive_weight: float = 1.0,
        train_text: bool = False,
        text_cache: str | None = None,
        templates: Sequence[str] = PHOTO,
        lr: float = 5e-4,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.98),
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(
            student,
            teacher,
            init_from,
            text_cache,
            contrastive,
            templates,
            lr,
            weight_decay,
            betas,
            warmup_steps,
        )
        self.save_hyperparameters()
        if train_text and text_cache is not None:
            raise ValueError(
                f"train_text changes the embeddings that text_cache={text_cache!r} would keep: leave out one."
            )
        config: TapConfig | Mapping[str, Any] = taps
        self.tap_config = TapConfig(**config) if isinstance(config, Mapping) else config
        self.tapped = self.tap_config.indices(self.encoder.depth)
        check_positive("contrastive_weight", contrastive_weight, zero=True)
        if not (contrastive_weight or self.tap_config.pp or self.tap_config.pb):
            raise ValueError("taps.pp, taps.pb and contrastive_weight are 0: there is nothing to learn from.")
        self.contrastive_weight = contrastive_weight
        self.train_text = train_text
        if not contrastive_weight:
            # Nothing else reads them, and DDP refuses trainable parameters that no loss reaches.
            head = (self.encoder.norm, self.encoder.head, self.encoder.head_proj)
            for unused in (*head, self.logit_scale, self.logit_bias):
                if unused is not None:
                    unused.requires_grad_(False)
        self.text: nn.Module | None = None
        self.taps: nn.ModuleDict | None = None

    def set_teacher(self, teacher: Teacher) -> None:
        """Takes the teacher, and makes the adapters and text tower whose shapes depend on it."""
        super().set_teacher(teacher)
        if self.contrastive_weight and teacher.text is None:
            raise ValueError(
                "The teacher has no text tower, which the contrastive loss needs: set contrastive_weight=0."
            )
        if teacher.encoder.depth != self.encoder.depth:
            raise ValueError(
                f"The student has depth={self.encoder.depth}, its teacher {teacher.encoder.depth}; "
                "taps need equal depths."
            )
        config = self.tap_config
        # PP and PB taps of one block have scales of their own, hence adapters and statistics of their own.
        self.taps = nn.ModuleDict(
            {
                f"{kind}_{block}": TapLoss(
                    self.encoder.embed_dim,
                    teacher.encoder.embed_dim,
                    config.kl,
                    config.temperature,
                    config.kl_direction,
                    config.standardize,
                    branch=kind == "pp",
                )
                for kind in TAPS
                for block in self.tapped
                if getattr(config, kind)
            }
        )
        if self.train_text and isinstance(teacher.text, nn.Module):
            self.text = copy.deepcopy(teacher.text).requires_grad_(True).train()

    def initialise(self) -> None:
        """Also starts the contrastive loss at the teacher's scale and bias."""
        super().initialise()
        scale, bias = self.frozen_teacher.logit_scale, self.frozen_teacher.logit_bias
        with torch.no_grad():
            if scale is not None:
                self.logit_scale.fill_(scale)
            if bias is not None and self.logit_bias is not None:
                self.logit_bias.fill_(bias)

    @property
    def text_encoder(self) -> Callable[[Sequence[str]], Tensor] | None:
        """The text tower that trains along, or the teacher's."""
        return super().text_encoder if self.text is None else self.text.encode  # type: ignore[return-value]

    def teacher_trace(self, images: Tensor) -> EncoderTrace:
        """The teacher's features at the student's taps."""
        return self.frozen_teacher.trace(images, self.tapped)

    def losses(
        self, batch: Batch, student: EncoderTrace, teacher: EncoderTrace, text: Tensor | None
    ) -> dict[str, Tensor]:
        """All terms of the loss, unweighted, and ``loss``, their weighted sum.

        Args:
            batch: Whose captions say which pairs match.
            student: The student's features.
            teacher: The teacher's features at the same taps, on the same grid.
            text: The captions' embeddings, (B, C).

        Raises:
            ValueError: If the contrastive loss has no captions.
        """
        assert self.taps is not None
        terms: dict[str, Tensor] = {}
        total = student.summary.new_zeros((), dtype=torch.float32)
        for kind, ours, theirs in (
            ("pp", student.branches, teacher.branches),
            ("pb", student.outputs, teacher.outputs),
        ):
            if not (weight := getattr(self.tap_config, kind)):
                continue
            pairs = [self.taps[f"{kind}_{i}"](ours[i], theirs[i], teacher.outputs[i]) for i in self.tapped]
            error, kl = (torch.stack(values).mean() for values in zip(*pairs, strict=True))
            terms |= {f"{kind}_mse": error, f"{kind}_kl": kl}
            total = total + weight * (error + kl)
        if self.contrastive_weight:
            if text is None:
                raise ValueError("The batch has no texts: set contrastive_weight=0 to train without.")
            terms["contrastive"] = self.contrastive_loss(student.summary, text, batch["text"])
            total = total + self.contrastive_weight * terms["contrastive"]
        return terms | {"loss": total}

    def traces(self, images: Tensor) -> tuple[EncoderTrace, EncoderTrace]:
        """What happens in the student and in its teacher."""
        return self.encoder.forward_with_taps(images, self.tapped), self.teacher_trace(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The weighted sum of contrastive loss and taps."""
        student, teacher = self.traces(batch["image"])
        terms = self.losses(batch, student, teacher, self.embed_captions(batch))
        self.log_losses("train", {k: v.detach() for k, v in terms.items()}, len(batch["image"]))
        return terms["loss"]

    @torch.no_grad()
    def evaluate(self, batch: Batch, prefix: str) -> None:
        """The same losses, cosines to the teacher, retrieval and zero-shot classification."""
        student, teacher = self.traces(batch["image"])
        text = self.embed_captions(batch)
        terms = self.losses(batch, student, teacher, text) | compare_outputs(student, teacher)
        self.log_losses(prefix, terms, len(batch["image"]))
        self.update_metrics(batch, student.summary, text)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lets a checkpoint be read without its teacher: what belongs to the teacher's run stays behind."""
        super().on_load_checkpoint(checkpoint)
        if self.teacher is None:
            state = checkpoint["state_dict"]
            for name in [name for name in state if name.startswith(("taps.", "text."))]:
                del state[name]
