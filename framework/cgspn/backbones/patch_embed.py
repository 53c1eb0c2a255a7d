from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cgspn.ops.checks import check_tensors

# What autocast turns into its own dtype.
CONVERTED = (torch.float16, torch.bfloat16, torch.float32)


class PatchEmbed(nn.Module):
    """Turns an image into a grid of tokens, one linear layer on every patch.

    Sizes that are no multiple of the patch are padded with zeros at the bottom and the right.

    Args:
        patch_size: Side of a patch in pixels.
        in_chans: Channels of the image.
        embed_dim: Channels C of a token.
    """

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.weight = nn.Parameter(torch.empty(embed_dim, in_chans, patch_size, patch_size))
        self.bias = nn.Parameter(torch.zeros(embed_dim))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Maps (B, in_chans, height, width) to (B, ceil(height / patch), ceil(width / patch), C)."""
        check_images(images, self.weight.shape[1], self.weight.dtype)
        p = self.patch_size
        pad_bottom, pad_right = -images.shape[2] % p, -images.shape[3] % p
        if pad_bottom or pad_right:
            images = F.pad(images, (0, pad_right, 0, pad_bottom))
        B, K, height, width = images.shape
        # A product on gathered patches gives (B, H, W, C) at once; a convolution would give it transposed.
        patches = images.reshape(B, K, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5).flatten(3)
        return F.linear(patches, self.weight.flatten(1), self.bias)


def check_images(images: Tensor, in_chans: int, dtype: torch.dtype | None = None) -> None:
    """Raises ValueError unless ``images`` is (B, in_chans, height, width), of ``dtype`` if one is given.

    Autocast takes any dtype that it converts by itself.
    """
    check_tensors(images=images)
    if images.ndim != 4 or images.shape[1] != in_chans:
        raise ValueError(f"Expected images (B, {in_chans}, height, width), got {tuple(images.shape)}.")
    if dtype is None or images.dtype == dtype:
        return
    if images.dtype not in CONVERTED or not torch.is_autocast_enabled(images.device.type):
        raise ValueError(
            f"Expected normalised images of dtype {dtype} as the weights have, got {images.dtype}."
        )
