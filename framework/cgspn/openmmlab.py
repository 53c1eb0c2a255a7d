"""The encoders as backbones of mmsegmentation and its relatives: ``backbone=dict(type="cgspn.<name>")``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cgspn.backbones import create_model
from cgspn.backbones.feature_maps import FeatureMaps


def builder(name: str) -> Callable[..., FeatureMaps]:
    """What builds the feature maps of the encoder ``name``."""

    def build(
        out_indices: Sequence[int] = (-1,),
        norm: bool = True,
        frozen: bool = False,
        pretrained: str | None = None,
        **arguments: Any,
    ) -> FeatureMaps:
        return FeatureMaps(create_model(name, pretrained, **arguments), out_indices, norm, frozen)

    build.__name__ = build.__qualname__ = name
    return build
