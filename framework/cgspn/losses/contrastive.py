"""Image-text contrastive losses in which equal captions are each other's positives.

Both losses take this rank's rows and compare them with the rows of all ranks, with gradient. The mean of
the ranks' losses, and the mean of their gradients (what DDP computes), equal the loss and gradient of one
process that holds the whole global batch. That needs as many rows and calls on every rank; where these may
differ, as in validation, ``across_ranks=False`` compares this rank's rows with each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cgspn.losses.checks import check_features, check_number
from cgspn.losses.gather import gather_with_gradient
from cgspn.ops.checks import check_tensors


def caption_keys(captions: Sequence[str], device: torch.device | None = None) -> Tensor:
    """Numbers that are equal where the captions are, on any rank and in any process.

    Args:
        captions: B captions.
        device: Where the numbers go.

    Returns:
        Shape (B,), int64: 63 bits of a hash of each caption.

    Raises:
        ValueError: If there is something else than strings.
    """
    strings = isinstance(captions, Sequence) and all(isinstance(caption, str) for caption in captions)
    if isinstance(captions, str) or not strings:
        raise ValueError(f"captions must be a list of strings, got {captions!r:.80}.")
    digests = (hashlib.blake2b(caption.encode(), digest_size=8).digest() for caption in captions)
    keys = [int.from_bytes(digest, "little") >> 1 for digest in digests]
    return torch.tensor(keys, dtype=torch.int64, device=device)


def _similarities(
    image: Tensor, text: Tensor, keys: Tensor, across_ranks: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines of (local image, all texts) and (local text, all images), and which pairs are positives."""
    if image.dim() != 2 or text.dim() != 2 or image.shape[1] != text.shape[1]:
        raise ValueError(
            f"image and text must have shapes (B, C), got {tuple(image.shape)} and {tuple(text.shape)}."
        )
    check_tensors(keys=keys)
    if keys.dim() != 1 or keys.is_floating_point() or keys.is_complex() or keys.device != image.device:
        raise ValueError(
            f"keys must be whole numbers of shape (B,) on {image.device}, "
            f"got {keys.dtype} of shape {tuple(keys.shape)} on {keys.device}."
        )
    if not len(image) == len(text) == len(keys):
        raise ValueError(f"Images, texts and keys differ in number: {len(image)}, {len(text)}, {len(keys)}.")
    image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
    all_images, all_texts, all_keys = image, text, keys
    if across_ranks:
        all_images, all_texts, all_keys = map(gather_with_gradient, (image, text, keys))
    return image @ all_texts.T, text @ all_images.T, keys[:, None] == all_keys


def info_nce(image: Tensor, text: Tensor, keys: Tensor, scale: Tensor, across_ranks: bool = True) -> Tensor:
    """Symmetric cross-entropy between the softmax over similarities and the uniform law on the positives.

    With distinct captions this is CLIP's loss. A sample with n positives has the target 1/n on each (the
    papers do not say how equal captions are treated; this choice is ours).

    Args:
        image: Image embeddings of this rank, shape (B, C); they are normalised here.
        text: Text embeddings of this rank, shape (B, C); they are normalised here.
        keys: Caption numbers of this rank, shape (B,), from ``caption_keys``.
        scale: Factor on the cosines, one number: ``logit_scale.exp()``.
        across_ranks: Whether the rows of all ranks are compared, or this rank's alone.

    Returns:
        Scalar in float32, the mean over this rank's samples.

    Source: arXiv:2103.00020, figure 3.
    """
    check_features(image=image, text=text)
    with torch.autocast(image.device.type, enabled=False):
        image_text, text_image, positive = _similarities(image, text, keys, across_ranks)
        check_number("scale", scale, image)
        target = positive.float() / positive.sum(dim=1, keepdim=True)
        image_loss = F.cross_entropy(scale.float() * image_text, target)
        return (image_loss + F.cross_entropy(scale.float() * text_image, target)) / 2


def sigmoid_contrastive(
    image: Tensor, text: Tensor, keys: Tensor, scale: Tensor, bias: Tensor, across_ranks: bool = True
) -> Tensor:
    """Pairwise logistic loss: every image-text pair is classified as matching or not.

    Args:
        image: Image embeddings of this rank, shape (B, C); they are normalised here.
        text: Text embeddings of this rank, shape (B, C); they are normalised here.
        keys: Caption numbers of this rank, shape (B,), from ``caption_keys``.
        scale: Factor on the cosines, one number: ``logit_scale.exp()``.
        bias: Added to the scaled cosines, one number.
        across_ranks: Whether the rows of all ranks are compared, or this rank's alone.

    Returns:
        Scalar in float32, the sum over all texts, averaged over this rank's images.

    Source: arXiv:2303.15343, algorithm 1.
    """
    check_features(image=image, text=text)
    with torch.autocast(image.device.type, enabled=False):
        image_text, _, positive = _similarities(image, text, keys, across_ranks)
        check_number("scale", scale, image)
        check_number("bias", bias, image)
        logits = scale.float() * image_text + bias.float()
        return -F.logsigmoid(torch.where(positive, logits, -logits)).sum(dim=1).mean()
