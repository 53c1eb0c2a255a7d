from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from cgspn.backbones.patch_embed import check_images
from cgspn.backbones.vision_transformer import OUTPUT_FORMATS, EncoderOutput
from cgspn.registry import BACKBONES


@BACKBONES.register_module(name="raw_patches")
class RawPatches(nn.Module):
    """The pixels of each patch as features, without parameters: what every encoder must beat.

    Args:
        patch_size: Side of a patch in pixels.
        in_chans: Channels of the image.
        mean: Mean of each image channel that the input is normalised by, for values in [0, 1].
        std: Standard deviation of each image channel, likewise.
    """

    def __init__(
        self,
        patch_size: int = 8,
        in_chans: int = 3,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        if patch_size < 1:
            raise ValueError(f"patch_size={patch_size} must be at least 1.")
        self.patch_size = patch_size
        self.in_chans = in_chans
        self.depth = 1
        self.embed_dim = self.num_features = in_chans * patch_size**2
        self.mean, self.std = tuple(mean), tuple(std)
        self.feature_info = [{"module": "", "num_chs": self.embed_dim, "reduction": patch_size}]

    def forward_features(self, images: Tensor) -> Tensor:
        """Patches (B, H, W, C) of images (B, in_chans, height, width), zero-padded at bottom and right."""
        check_images(images, self.in_chans)
        height, width = images.shape[2:]
        size = self.patch_size
        images = F.pad(images, (0, -width % size, 0, -height % size))
        return F.pixel_unshuffle(images, size).permute(0, 2, 3, 1)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """The mean patch (B, C)."""
        return features.mean((1, 2))

    def forward(self, images: Tensor) -> Tensor:
        """``forward_head`` of ``forward_features``."""
        return self.forward_head(self.forward_features(images))

    def encode(self, images: Tensor) -> EncoderOutput:
        """Mean patch and patches."""
        features = self.forward_features(images)
        return EncoderOutput(self.forward_head(features), features)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Does nothing: there are no activations."""

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The patches as the only intermediate, with the arguments of the other encoders.

        Raises:
            ValueError: If another block than 0 or -1, or an unknown format, is asked for.
        """
        wanted = [0] if indices is None else [-1] * indices if isinstance(indices, int) else list(indices)
        if any(i not in (0, -1) for i in wanted) or len(wanted) > 1:
            raise ValueError(f"raw_patches has one feature map, block 0; asked for {indices}.")
        if output_fmt not in OUTPUT_FORMATS:
            raise ValueError(f"output_fmt={output_fmt!r} is unknown; valid: {', '.join(OUTPUT_FORMATS)}.")
        features = self.forward_features(x)
        output = features.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else features
        intermediates: list[Tensor] = [output] * len(wanted)
        return intermediates if intermediates_only else (features, intermediates)
