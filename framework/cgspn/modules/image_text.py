"""What all training stages share: an encoder, its optimizer, and its evaluation against texts."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from cgspn.backbones.vision_transformer import VisionEncoder
from cgspn.backbones.weights import load_part, load_weights
from cgspn.data.transforms import ImageTransform
from cgspn.losses import caption_keys, info_nce, sigmoid_contrastive
from cgspn.modules.init_from import InitFrom
from cgspn.modules.optimization import adamw, check_optimization, decayed_names
from cgspn.modules.retrieval import RetrievalRecall
from cgspn.registry import BACKBONES, BackboneConfig

ContrastiveName = Literal["info_nce", "sigmoid"]
CONTRASTIVE: dict[ContrastiveName, tuple[float, float | None]] = {
    # Start of the scale and of the bias: CLIP's and SigLIP's.
    "info_nce": (1 / 0.07, None),
    "sigmoid": (10.0, -10.0),
}
# CLIP's limit. SigLIP has none, and its published scales exceed this one.
MAX_SCALE = 100.0
PHOTO = ("a photo of a {}.",)

Batch = Mapping[str, Any]


class ImageTextModule(LightningModule, abc.ABC):
    """Base of the training stages; batches are ``{"image"[, "text"][, "label"]}``.

    ``self.encoder`` is what is trained. Validation and test report retrieval where batches have texts and
    zero-shot classification where they have labels and the DataModule has ``class_names``.

    Args:
        encoder: The encoder's config node.
        init_from: Weights that ``encoder`` starts from, or None.
        contrastive: ``info_nce`` or ``sigmoid``.
        templates: Sentences with ``{}`` for a class name, averaged in zero-shot classification.
        lr: Learning rate of AdamW after the warm-up; it falls to 0 as a half cosine.
        weight_decay: Weight decay of parameters with more than one dimension.
        betas: AdamW's two decay rates.
        warmup_steps: Steps in which the learning rate rises linearly.
    """

    logit_bias: nn.Parameter | None

    def __init__(
        self,
        encoder: BackboneConfig,
        init_from: InitFrom | Mapping[str, Any] | None,
        contrastive: ContrastiveName,
        templates: Sequence[str],
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        warmup_steps: int,
    ) -> None:
        super().__init__()
        if contrastive not in CONTRASTIVE:
            raise ValueError(f"Unknown contrastive loss {contrastive!r}. Valid: {', '.join(CONTRASTIVE)}.")
        if missing := [template for template in templates if "{}" not in template]:
            raise ValueError(f"The template {missing[0]!r} has no {{}} for the class name.")
        self.encoder: VisionEncoder = BACKBONES.build(encoder)
        self.init_from = InitFrom(**init_from) if isinstance(init_from, Mapping) else init_from
        self.contrastive = contrastive
        self.templates = tuple(templates)
        self.optimization = check_optimization(lr, weight_decay, betas, warmup_steps)
        scale, bias = CONTRASTIVE[contrastive]
        # FSDP takes no parameters without dimensions.
        self.logit_scale = nn.Parameter(torch.tensor([math.log(scale)]))
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor([bias]))
        self.retrieval = RetrievalRecall()
        self.zero_shot_top1 = MeanMetric()
        self.zero_shot_top5 = MeanMetric()
        self.class_embeddings: Tensor | None = None
        self.missing = False
        self.decayed: frozenset[str] = frozenset()

    @property
    def text_encoder(self) -> Callable[[Sequence[str]], Tensor] | None:
        """Embeds captions, (B, C); None where the stage has no text tower."""
        return None

    def setup(self, stage: str) -> None:
        """Sets the weights that a run starts from.

        Lightning does not say here whether the run is resumed. A resumed run overwrites these weights and
        does not need them, so a missing file is an error only once training starts without it.
        """
        self.check_normalisation()
        if stage == "fit":
            self.missing = self.init_from is not None and not Path(self.init_from.path).is_file()
            if not self.missing:
                self.initialise()
        self.decayed = decayed_names(self)

    def check_normalisation(self) -> None:
        """Raises ValueError if the DataModule normalises images otherwise than the encoder expects."""
        data = getattr(getattr(self._trainer, "datamodule", None), "transform", None)
        if isinstance(data, ImageTransform) and (data.mean, data.std) != (
            self.encoder.mean,
            self.encoder.std,
        ):
            raise ValueError(
                f"The data are normalised by mean={data.mean}, std={data.std}, the encoder expects "
                f"mean={self.encoder.mean}, std={self.encoder.std}; set data.mean and data.std to these."
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes that the weights come from a checkpoint."""
        self.missing = False

    def on_train_start(self) -> None:
        """Raises the error that the starting weights are missing, if they are needed."""
        if self.missing:
            self.initialise()

    def initialise(self) -> None:
        """Sets the weights that training starts from."""
        if self.init_from is not None:
            path, part = self.init_from.path, self.init_from.part
            load_weights(self.encoder, load_part(path, part), path)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with warm-up and cosine decay over the run's steps."""
        return adamw(self, self.decayed, *self.optimization)

    def captions_of(self, batch: Batch) -> Sequence[str]:
        """The captions of a batch.

        Raises:
            ValueError: If it has none.
        """
        if "text" not in batch:
            raise ValueError(
                f"The batch has no captions, which {type(self).__name__} needs: use data with captions."
            )
        return batch["text"]

    def contrastive_loss(self, image: Tensor, text: Tensor, captions: Sequence[str]) -> Tensor:
        """The chosen loss between summaries (B, C) and text embeddings (B, C).

        Training compares the rows of all ranks. In evaluation ranks may have unequal numbers of rows and of
        batches, so each compares its own.
        """
        if image.shape[-1] != text.shape[-1]:
            raise ValueError(
                f"The encoder's summary has {image.shape[-1]} channels, the text tower {text.shape[-1]}: "
                f"the contrastive loss needs equal numbers: set the encoder's summary_dim={text.shape[-1]}."
            )
        keys = caption_keys(captions, image.device)
        scale = self.logit_scale.exp()
        if self.logit_bias is None:
            return info_nce(image, text, keys, scale.clamp(max=MAX_SCALE), self.training)
        return sigmoid_contrastive(image, text, keys, scale, self.logit_bias, self.training)

    def log_losses(self, prefix: str, losses: Mapping[str, Tensor], batch_size: int) -> None:
        """Logs scalars as ``prefix/name``, per step in training and averaged over all ranks elsewhere."""
        self.log_dict(
            {f"{prefix}/{name}": value for name, value in losses.items()},
            prog_bar=False,
            # Lightning rounds the mean of the ranks' numbers of samples down if they are integers.
            batch_size=float(batch_size),  # type: ignore[arg-type]
            sync_dist=prefix != "train",
        )
        if "loss" in losses and prefix == "train":
            self.log("loss", losses["loss"], prog_bar=True, logger=False, batch_size=batch_size)

    def on_validation_epoch_start(self) -> None:
        """Embeds the class names, if the DataModule has some."""
        names = getattr(getattr(self.trainer, "datamodule", None), "class_names", None)
        self.class_embeddings = None
        if names and self.text_encoder is not None:
            self.class_embeddings = self.embed_classes(names)

    on_test_epoch_start = on_validation_epoch_start

    @torch.no_grad()
    def embed_classes(self, names: Sequence[str]) -> Tensor:
        """Normalised mean of each class's embedded templates, (number of classes, C)."""
        assert self.text_encoder is not None
        embeddings = []
        for name in names:
            texts = self.text_encoder([template.format(name) for template in self.templates])
            embeddings.append(F.normalize(texts.float(), dim=-1).mean(dim=0))
        return F.normalize(torch.stack(embeddings), dim=-1)

    @torch.no_grad()
    def update_metrics(self, batch: Batch, summary: Tensor, text: Tensor | None) -> None:
        """Takes a batch into retrieval (if ``text``) and zero-shot accuracy (if there are classes)."""
        if text is not None:
            self.retrieval.update(summary, text, caption_keys(batch["text"], summary.device))
        if self.class_embeddings is not None and "label" in batch:
            logits = F.normalize(summary.float(), dim=-1) @ self.class_embeddings.to(summary.device).T
            hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == batch["label"][:, None]
            self.zero_shot_top1.update(100 * hits[:, :1].any(dim=1).float())
            self.zero_shot_top5.update(100 * hits.any(dim=1).float())

    def log_metrics(self, prefix: str) -> None:
        """Logs and resets what ``update_metrics`` gathered; percent."""
        if self.retrieval.update_called:
            recalls = self.retrieval.compute()
            # Every rank has the whole set's figures already; their mean over ranks is the same.
            self.log_dict(
                {f"{prefix}/retrieval/{name}": value for name, value in recalls.items()}, sync_dist=True
            )
            self.retrieval.reset()
        for metric, name in ((self.zero_shot_top1, "top1"), (self.zero_shot_top5, "top5")):
            if metric.update_called:
                self.log(f"{prefix}/zero_shot/{name}", metric.compute(), sync_dist=True)
                metric.reset()

    @abc.abstractmethod
    def evaluate(self, batch: Batch, prefix: str) -> None:
        """Logs the losses of a batch and takes it into the metrics."""

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Evaluates one batch."""
        self.evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Evaluates one batch."""
        self.evaluate(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Logs the metrics."""
        self.log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Logs the metrics."""
        self.log_metrics("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps dataclasses out of the hyperparameters, which are read back with ``weights_only``."""
        checkpoint["hyper_parameters"] = plain(checkpoint.get("hyper_parameters", {}))


def plain(value: Any) -> Any:
    """The same value in dicts, lists and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
