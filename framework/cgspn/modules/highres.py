from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from cgspn.backbones.vision_transformer import EncoderTrace
from cgspn.modules.stage2 import Stage2Contrastive


def resize_features(features: Tensor, height: int, width: int) -> Tensor:
    """Bilinearly resizes dense features (B, H, W, C) to (B, height, width, C)."""
    if features.shape[1:3] == (height, width):
        return features
    nchw = features.permute(0, 3, 1, 2)
    resized = F.interpolate(nchw, (height, width), mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1)


class HighResolution(Stage2Contrastive):
    """One step of the high-resolution curriculum: stage 2 with a teacher that sees the picture smaller.

    The teacher is the checkpoint of the step before, at the resolution it was trained at. It reads the same
    crop, downsampled with antialiasing, and its features are bilinearly upsampled to the student's grid.
    Every step is a run of its own, so optimizer and adapters start afresh; the student's weights start from
    the teacher's. A curriculum 378 -> 518 -> 756 -> 1036 is three runs, each with the last one's checkpoint
    as ``teacher`` and its own size as ``student.img_size`` and the DataModule's image size.

    Arguments are those of ``Stage2Contrastive``.

    Source: arXiv:2606.00746.
    """

    def teacher_images(self, images: Tensor) -> Tensor:
        """The same images at the teacher's own size.

        Raises:
            ValueError: If a size is no multiple of the patch (the two grids would cover different areas), or
                the images are smaller than the teacher's or of another aspect.
        """
        own, size, patch = tuple(images.shape[-2:]), self.frozen_teacher.img_size, self.encoder.patch_size
        if any(side % patch for side in (*own, *size)):
            raise ValueError(
                f"Images {own} and the teacher's {size} must be multiples of the patch, {patch}."
            )
        if own[0] < size[0] or own[0] * size[1] != own[1] * size[0]:
            raise ValueError(
                f"Images {own} must be at least as large as the teacher's {size} and of the same aspect."
            )
        # bfloat16 has no antialiased kernel on every device.
        small = F.interpolate(images.float(), size, mode="bicubic", align_corners=False, antialias=True)
        return small.to(images.dtype)

    def teacher_trace(self, images: Tensor) -> EncoderTrace:
        """The teacher's features at the student's taps, on the student's grid."""
        trace = super().teacher_trace(self.teacher_images(images))
        patch = self.encoder.patch_size
        height, width = images.shape[-2] // patch, images.shape[-1] // patch

        def resize(features: dict[int, Tensor]) -> dict[int, Tensor]:
            return {i: resize_features(tokens, height, width) for i, tokens in features.items()}

        return EncoderTrace(
            resize(trace.inputs),
            resize(trace.branches),
            resize(trace.outputs),
            resize_features(trace.features, height, width),
            trace.summary,
        )
