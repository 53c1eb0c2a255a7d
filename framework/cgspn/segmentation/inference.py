"""From a network's scores to label maps: whole pictures or sliding windows, at any picture size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

# Classes resized at once: bounds the memory of a large picture to this many planes.
CLASS_CHUNK = 16


def slide_scores(
    scores: Callable[[Tensor], Tensor], images: Tensor, crop_size: tuple[int, int], stride: tuple[int, int]
) -> Tensor:
    """Averages the scores of overlapping windows, the last of a row or column being moved inwards.

    Args:
        scores: Maps windows (B, 3, h, w) to scores (B, num_classes, h, w).
        images: Pictures, shape (B, 3, H, W); a side below the window's is taken as it is.
        crop_size: Height and width of a window in pixels.
        stride: Vertical and horizontal step in pixels.

    Returns:
        Scores (B, num_classes, H, W).
    """
    height, width = images.shape[2:]
    total, count = None, images.new_zeros(1, 1, height, width)
    for top in window_starts(height, crop_size[0], stride[0]):
        for left in window_starts(width, crop_size[1], stride[1]):
            window = (..., slice(top, top + crop_size[0]), slice(left, left + crop_size[1]))
            part = scores(images[window])
            if total is None:
                total = part.new_zeros(len(images), part.shape[1], height, width)
            total[window] += part
            count[window] += 1
    assert total is not None
    return total / count


def window_starts(extent: int, size: int, stride: int) -> list[int]:
    """First pixels of the windows that cover ``extent``; every window lies inside if it can."""
    steps = -(-max(extent - size, 0) // stride)
    return [max(min(i * stride, extent - size), 0) for i in range(steps + 1)]


def labels_at(scores: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """The class with the highest score at each pixel after a bilinear resize.

    Args:
        scores: Shape (B, num_classes, h, w).
        size: Height and width of the label maps.
        align_corners: As in ``torch.nn.functional.interpolate``.

    Returns:
        Class indices (B, height, width), int64; of equal scores the first class wins.
    """
    if scores.shape[2:] == torch.Size(size):
        return scores.argmax(1)
    best, labels = None, None
    for first in range(0, scores.shape[1], CLASS_CHUNK):
        part = functional.interpolate(
            scores[:, first : first + CLASS_CHUNK], size, mode="bilinear", align_corners=align_corners
        )
        value, index = part.max(1)
        if best is None or labels is None:
            best, labels = value, index
        else:
            better = value > best
            labels = torch.where(better, index + first, labels)
            best = torch.where(better, value, best)
    assert labels is not None
    return labels
