from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cgspn.modules.image_text import PHOTO, Batch, ContrastiveName, ImageTextModule
from cgspn.modules.init_from import InitFrom
from cgspn.registry import BackboneConfig
from cgspn.text import TextConfig, TextTransformer

DEFAULT_TEXT = TextConfig()


class ContrastivePretraining(ImageTextModule):
    """Trains an encoder and a text tower from scratch on image-text pairs: how a teacher is made.

    Batches are ``{"image", "text"[, "label"]}``.

    Args:
        encoder: The vision tower.
        text: The text tower's shape.
        init_from: Weights that the encoder starts from, or None.
        contrastive: ``info_nce`` (CLIP) or ``sigmoid`` (SigLIP).
        templates: Sentences with ``{}`` for a class name, averaged in zero-shot classification.
        lr: Learning rate of AdamW after the warm-up; it falls to 0 as a half cosine.
        weight_decay: Weight decay of parameters with more than one dimension.
        betas: AdamW's two decay rates.
        warmup_steps: Steps in which the learning rate rises linearly.
    """

    def __init__(
        self,
        encoder: BackboneConfig,
        text: TextConfig = DEFAULT_TEXT,
        init_from: InitFrom | None = None,
        contrastive: ContrastiveName = "info_nce",
        templates: Sequence[str] = PHOTO,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.98),
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(encoder, init_from, contrastive, templates, lr, weight_decay, betas, warmup_steps)
        self.save_hyperparameters()
        shape: TextConfig | Mapping[str, Any] = text
        shape = TextConfig(**shape) if isinstance(shape, Mapping) else shape
        self.text = TextTransformer(self.encoder.summary_dim, shape)

    @property
    def text_encoder(self) -> Callable[[Sequence[str]], Tensor]:
        """Embeds captions, (B, C)."""
        return self.text.encode

    def forward(self, images: Tensor) -> Tensor:
        """Summaries (B, C) of normalised images (B, 3, height, width)."""
        return self.encoder.encode(images).summary

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Contrastive loss of one batch."""
        captions = self.captions_of(batch)
        loss = self.contrastive_loss(self(batch["image"]), self.text.encode(captions), captions)
        losses = {"loss": loss, "logit_scale": self.logit_scale.detach().exp()}
        self.log_losses("train", losses, len(batch["image"]))
        return loss

    @torch.no_grad()
    def evaluate(self, batch: Batch, prefix: str) -> None:
        """Contrastive loss, retrieval and zero-shot classification."""
        captions = self.captions_of(batch)
        summary, text = self(batch["image"]), self.text.encode(captions)
        loss = self.contrastive_loss(summary, text, captions)
        self.log_losses(prefix, {"loss": loss}, len(summary))
        self.update_metrics(batch, summary, text)
