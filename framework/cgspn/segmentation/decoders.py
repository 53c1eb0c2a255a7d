"""What turns features into class scores: mmsegmentation's decode heads and losses behind one interface."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from cgspn.registry import DECODERS
from cgspn.segmentation._mmseg import MODELS, BaseDecodeHead, ConfigDict, MMLogger

BATCH_NORM = {"type": "BN", "requires_grad": True}


class Decoder(nn.Module):
    """An mmsegmentation decode head, with an optional neck before it and an auxiliary head beside it.

    Args:
        decode_head: Config of the head.
        neck: Config of what prepares the features.
        auxiliary_head: Config of a second head whose loss is added in training.
    """

    neck: Any
    decode_head: Any
    auxiliary_head: Any

    def __init__(
        self,
        decode_head: Mapping[str, Any],
        neck: Mapping[str, Any] | None = None,
        auxiliary_head: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.neck = None if neck is None else build(neck)
        self.decode_head = build(decode_head)
        self.auxiliary_head = None if auxiliary_head is None else build(auxiliary_head)

    @property
    def align_corners(self) -> bool:
        """How the head's scores are to be resized."""
        return self.decode_head.align_corners

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Class scores (B, num_classes, h, w) of feature maps (B, C, H, W)."""
        return self.decode_head(self._neck(features))

    def losses(self, features: Sequence[Tensor], samples: Sequence[Any]) -> dict[str, Tensor]:
        """Losses and pixel accuracy (percent) by name.

        Args:
            features: Feature maps (B, C, H, W).
            samples: mmseg's SegDataSample of each picture, label maps all of one size.
        """
        features = self._neck(features)
        losses = {f"decode_{k}": v for k, v in self.decode_head.loss(features, samples, None).items()}
        if self.auxiliary_head is not None:
            auxiliary = self.auxiliary_head.loss(features, samples, None)
            losses.update((f"auxiliary_{k}", v) for k, v in auxiliary.items())
        return losses

    def _neck(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        return features if self.neck is None else self.neck(features)


@DECODERS.register_module(name="linear")
class LinearDecoder(Decoder):
    """Linear probe: BatchNorm and one 1x1 convolution; several feature maps are concatenated.

    Args:
        in_channels: Channels of each feature map.
        num_classes: Number of classes.
        dropout_ratio: Share of channels dropped before the convolution.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, dropout_ratio: float = 0.0) -> None:
        super().__init__(
            {
                "type": "BatchNormLinearHead",
                "in_channels": list(in_channels),
                "num_classes": num_classes,
                "dropout_ratio": dropout_ratio,
            }
        )


@DECODERS.register_module(name="upernet")
class UPerNetDecoder(Decoder):
    """UPerNet on a pyramid made of four feature maps of one size, with an FCN as auxiliary head.

    Args:
        in_channels: Channels of each of the four feature maps.
        num_classes: Number of classes.
        channels: Channels of the decode head.
        pool_scales: Grid sizes of the pyramid pooling.
        dropout_ratio: Share of channels dropped before the classifier.
        auxiliary_channels: Channels of the auxiliary head.
        auxiliary_weight: Weight of its loss; 0 leaves it out.

    Source: arXiv:1807.10221; the pyramid of a plain ViT as in BEiT's segmentation recipe, arXiv:2106.08254.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int = 512,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        dropout_ratio: float = 0.1,
        auxiliary_channels: int = 256,
        auxiliary_weight: float = 0.4,
    ) -> None:
        if len(in_channels) != 4 or len(set(in_channels)) != 1:
            raise ValueError(
                f"upernet needs 4 equal feature maps (out_indices), got channels {list(in_channels)}."
            )
        shared = {"num_classes": num_classes, "dropout_ratio": dropout_ratio, "norm_cfg": BATCH_NORM}
        auxiliary_head = {
            "type": "FCNHead",
            "in_channels": in_channels[2],
            "in_index": 2,
            "channels": auxiliary_channels,
            "num_convs": 1,
            "concat_input": False,
            "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": auxiliary_weight},
            **shared,
        }
        super().__init__(
            {
                "type": "UPerHead",
                "in_channels": list(in_channels),
                "in_index": [0, 1, 2, 3],
                "channels": channels,
                "pool_scales": tuple(pool_scales),
                **shared,
            },
            neck={"type": "Feature2Pyramid", "embed_dim": in_channels[0], "norm_cfg": BATCH_NORM},
            auxiliary_head=auxiliary_head if auxiliary_weight else None,
        )


@MODELS.register_module()
class BatchNormLinearHead(BaseDecodeHead):
    """BatchNorm and a 1x1 convolution on the concatenated feature maps."""

    def __init__(self, in_channels: Sequence[int], num_classes: int, dropout_ratio: float) -> None:
        super().__init__(
            in_channels=list(in_channels),
            in_index=list(range(len(in_channels))),
            input_transform="resize_concat",
            channels=sum(in_channels),
            num_classes=num_classes,
            dropout_ratio=dropout_ratio,
        )
        self.norm = nn.BatchNorm2d(self.channels)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Class scores (B, num_classes, H, W)."""
        return self.cls_seg(self.norm(self._transform_inputs(inputs)))


def build(config: Mapping[str, Any]) -> nn.Module:
    """Builds and initialises an entry of mmseg's registry, without its log of every parameter."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # The loss warns that it also divides by ignored pixels, which is mmsegmentation's way on ADE20K.
        warnings.simplefilter("ignore")
        module = MODELS.build(ConfigDict(config))
    try:
        if hasattr(module, "init_weights"):
            module.init_weights()
    finally:
        logger.setLevel(level)
    return module
