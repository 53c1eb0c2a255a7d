from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional

from cgspn.backbones.feature_maps import check_indices, freeze_unused
from cgspn.backbones.weights import load_part, load_weights
from cgspn.modules.image_text import plain
from cgspn.modules.init_from import InitFrom
from cgspn.modules.optimization import adamw, check_optimization, decayed_names
from cgspn.registry import BACKBONES, DECODERS, BackboneConfig, DecoderConfig
from cgspn.segmentation import results
from cgspn.segmentation.datamodule import NUM_CLASSES
from cgspn.segmentation.inference import labels_at, slide_scores

LINEAR = {"type": "linear"}
BETAS = (0.9, 0.999)


class SegmentationModule(LightningModule):
    """An encoder with a decode head, trained and evaluated on ADE20K's 150 classes.

    Frozen with the ``linear`` decoder it is a linear probe, otherwise fine-tuning. Every validation and
    test writes its figures and some pictures into the run's folder; ``predict`` writes label maps and
    overlays. Figures are in percent; means run over the classes present in the ground truth.

    Args:
        encoder: The backbone.
        init_from: Weights that the encoder starts from; None leaves it untrained.
        decoder: What turns features into class scores.
        freeze: Whether the encoder stays as it is.
        out_indices: Blocks whose features the decoder sees, negative ones counted from the end.
        norm: Whether the encoder's last norm is applied to them.
        mode: Inference on the ``whole`` picture or by a window that ``slide``s over it.
        crop_size: Height and width of the window in pixels.
        stride: Vertical and horizontal step of the window in pixels.
        lr: Learning rate of AdamW after the warm-up; it falls to 0 as a half cosine.
        weight_decay: Weight decay of parameters with more than one dimension.
        warmup_steps: Steps in which the learning rate rises from 0.
        cache_features: Whether a frozen encoder sees each training picture once and its features stay in
            memory; needs a DataModule with ``augment`` off.

    Raises:
        ValueError: If an argument does not fit; the message names the value.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: BackboneConfig,
        init_from: InitFrom | None = None,
        decoder: DecoderConfig = LINEAR,
        freeze: bool = True,
        out_indices: Sequence[int] = (-1,),
        norm: bool = True,
        mode: Literal["whole", "slide"] = "whole",
        crop_size: tuple[int, int] = (512, 512),
        stride: tuple[int, int] = (341, 341),
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        warmup_steps: int = 0,
        cache_features: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if mode not in ("whole", "slide"):
            raise ValueError(f"mode={mode!r} is unknown; valid: whole, slide.")
        if any(not 0 < step <= size for step, size in zip(stride, crop_size, strict=True)):
            raise ValueError(f"stride={tuple(stride)} must lie between 1 and crop_size={tuple(crop_size)}.")
        if cache_features and not freeze:
            raise ValueError(
                "cache_features=True needs freeze=True: features change while the encoder trains."
            )
        check_optimization(lr, weight_decay, BETAS, warmup_steps)
        self.init_from = InitFrom(**init_from) if isinstance(init_from, Mapping) else init_from
        self.frozen = freeze
        self.mode = mode
        self.norm = norm
        self.crop_size = crop_size
        self.stride = stride
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.cache_features = cache_features
        self.encoder_config = dict(encoder)
        self.encoder = BACKBONES.build(encoder)
        self.out_indices = check_indices(out_indices, self.encoder.depth)
        self.decoder = DECODERS.build(
            decoder,
            in_channels=[self.encoder.feature_info[i]["num_chs"] for i in self.out_indices],
            num_classes=NUM_CLASSES,
        )
        for name in ("mean", "std"):
            values = torch.tensor(getattr(self.encoder, name), dtype=torch.float32)
            self.register_buffer(name, values.view(1, -1, 1, 1), persistent=False)
        self.features_by_picture: dict[str, list[Tensor]] = {}
        self.examples: list[results.Example] = []
        self.missing = False
        self._freeze()

    def setup(self, stage: str) -> None:
        """Loads the encoder's weights and checks what the data can tell only now.

        Lightning does not say here whether the run is resumed. A resumed run overwrites these weights and
        does not need them, so a missing file is an error only once training starts without it.
        """
        if stage != "fit":
            return
        self.decayed = decayed_names(self)
        if self.cache_features and getattr(getattr(self.trainer, "datamodule", None), "augment", True):
            raise ValueError(
                "cache_features=True needs pictures that stay the same: set data.augment to False."
            )
        self.missing = self.init_from is not None and not Path(self.init_from.path).is_file()
        if not self.missing:
            self._initialise()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes that the weights come from a checkpoint."""
        self.missing = False

    def on_train_start(self) -> None:
        """Raises the error that the starting weights are missing, if they are needed."""
        if self.missing:
            self._initialise()

    def _initialise(self) -> None:
        if self.init_from is not None:
            path = self.init_from.path
            load_weights(self.encoder, load_part(path, self.init_from.part), path)

    def train(self, mode: bool = True) -> SegmentationModule:
        """Sets the mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps (B, C, h, w) of normalised images (B, 3, H, W)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.encoder.forward_intermediates(
                images,
                indices=self.out_indices,
                norm=self.norm,
                stop_early=True,
                intermediates_only=True,
            )

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (B, num_classes, H, W) of normalised images (B, 3, H, W)."""
        if self.mode == "slide":
            return slide_scores(self._scores, images, self.crop_size, self.stride)
        return self._scores(images)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The decoder's loss on one batch."""
        samples = batch["data_samples"]
        features = (
            self._cached_features(batch)
            if self.cache_features
            else self.features(self._normalise(batch["inputs"]))
        )
        losses = self.decoder.losses(features, samples)
        loss = torch.stack([value.sum() for name, value in losses.items() if "loss" in name]).sum()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(samples))
        self.log("train/aAcc", losses["decode_acc_seg"].mean(), batch_size=len(samples))
        return loss

    def on_validation_epoch_start(self) -> None:
        """Starts a new count."""
        from cgspn.segmentation.metric import PresentClassIoU

        self.metric = PresentClassIoU(self._dataset().metainfo["classes"])
        self.examples = []

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Counts the pictures of one batch."""
        for image, sample, labels in self._labels(batch):
            truth = sample.gt_sem_seg.data[0]
            self.metric.add(labels, truth)
            if len(self.examples) < results.NUM_EXAMPLES:
                self.examples.append(results.Example.of(sample.img_path, image, truth, labels))

    def on_validation_epoch_end(self) -> None:
        """Logs the figures and writes them into the run's folder."""
        stage = "test" if self.trainer.testing else "val"
        dataset = self._dataset()
        meta = dataset.metainfo
        figures = self.metric.evaluate(len(dataset))
        for name in ("mIoU", "aAcc", "mAcc", "num_classes_present"):
            self.log(f"{stage}/{name}", float(figures[name]), prog_bar=name == "mIoU", sync_dist=True)
        if self.trainer.sanity_checking:
            return
        per_class = {f"{stage}_IoU/{row['name']}": row["IoU"] for row in figures["classes"]}
        for logger in self.loggers:
            logger.log_metrics(per_class, self.global_step)
        folder = self._run_folder()
        if self.trainer.is_global_zero:
            results.write_results(
                folder,
                {
                    "stage": stage,
                    "step": self.global_step,
                    "images": dataset.data_prefix["img_path"],
                    **figures,
                    "encoder": self.encoder_config,
                    "num_parameters": sum(p.numel() for p in self.encoder.parameters()),
                    "init_from": None if self.init_from is None else str(self.init_from.path),
                },
            )
            results.write_examples(folder, self.examples, meta["classes"], meta["palette"])

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[str]:
        """Writes a label map and an overlay of each picture and returns their paths."""
        from cgspn.segmentation._mmseg import ADE20KDataset
        from cgspn.segmentation.overlay import write_prediction

        classes, palette = ADE20KDataset.METAINFO["classes"], ADE20KDataset.METAINFO["palette"]
        folder = self._run_folder() / "predictions"
        return [
            str(path)
            for _, sample, labels in self._labels(batch)
            for path in write_prediction(folder, sample.img_path, labels, classes, palette)
        ]

    def on_predict_end(self) -> None:
        """Says where the pictures are."""
        if self.trainer.is_global_zero:
            print(f"label maps and overlays: {self._run_folder() / 'predictions'}")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with warm-up and cosine decay over what is trained."""
        return adamw(self, self.decayed, self.lr, self.weight_decay, BETAS, self.warmup_steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps dataclasses out of the hyperparameters, which are read back with ``weights_only``."""
        checkpoint["hyper_parameters"] = plain(checkpoint.get("hyper_parameters", {}))

    def _freeze(self) -> None:
        if self.frozen:
            self.encoder.requires_grad_(False)
            self.encoder.eval()
        freeze_unused(self.encoder, self.out_indices, self.norm)

    def _scores(self, images: Tensor) -> Tensor:
        scores = self.decoder(self.features(images))
        return functional.interpolate(
            scores, images.shape[2:], mode="bilinear", align_corners=self.decoder.align_corners
        )

    def _normalise(self, pictures: Sequence[Tensor]) -> Tensor:
        """Stacks mmcv's uint8 BGR pictures (3, H, W) to the encoder's input (B, 3, H, W)."""
        images = torch.stack(list(pictures)).flip(1).to(self.mean.dtype) / 255
        return (images - self.mean) / self.std

    def _cached_features(self, batch: dict[str, Any]) -> list[Tensor]:
        names = [sample.img_path for sample in batch["data_samples"]]
        new = [i for i, name in enumerate(names) if name not in self.features_by_picture]
        if new:
            maps = self.features(self._normalise([batch["inputs"][i] for i in new]))
            for row, i in enumerate(new):
                self.features_by_picture[names[i]] = [feature[row].clone() for feature in maps]
        rows = [self.features_by_picture[name] for name in names]
        return [torch.stack(column) for column in zip(*rows, strict=True)]

    def _labels(self, batch: dict[str, Any]) -> Iterator[tuple[Tensor, Any, Tensor]]:
        """Yields each picture (3, H, W), its sample and its predicted labels at the original size."""
        pictures, samples = batch["inputs"], batch["data_samples"]
        alike = (
            len(
                {(picture.shape, sample.ori_shape) for picture, sample in zip(pictures, samples, strict=True)}
            )
            == 1
        )
        for group in [range(len(samples))] if alike else [[i] for i in range(len(samples))]:
            scores = self(self._normalise([pictures[i] for i in group]))
            labels = labels_at(scores, samples[group[0]].ori_shape, self.decoder.align_corners)
            yield from ((pictures[i], samples[i], labels[row]) for row, i in enumerate(group))

    def _dataset(self) -> Any:
        trainer = self.trainer
        loader: Any = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
        return loader.dataset

    def _run_folder(self) -> Path:
        return Path(self.trainer.log_dir or self.trainer.default_root_dir)
