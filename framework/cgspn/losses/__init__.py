"""Losses of the training stages: tensors in, scalars out, nothing about trainers or data."""

from cgspn.losses.contrastive import caption_keys, info_nce, sigmoid_contrastive
from cgspn.losses.gather import gather_with_gradient
from cgspn.losses.relative_error import relative_error
from cgspn.losses.tap import ChannelStatistics, KLDirection, TapAdapter, TapLoss, channel_kl

__all__ = [
    "ChannelStatistics",
    "KLDirection",
    "TapAdapter",
    "TapLoss",
    "caption_keys",
    "channel_kl",
    "gather_with_gradient",
    "info_nce",
    "relative_error",
    "sigmoid_contrastive",
]
