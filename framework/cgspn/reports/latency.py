"""Time of one picture through an encoder, all encoders measured in turns in one process."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from cgspn.registry import BACKBONES

ROUNDS = 15
# Seconds spent on one encoder at one size.
BUDGET = 2.0


def default_sizes(encoders: Sequence[Mapping[str, Any]]) -> list[int]:
    """The first encoder's own size and four times that, in pixels; empty if none tells its size."""
    for config in encoders:
        parameters = BACKBONES.parameters(str(config["type"]))
        if "img_size" in parameters:
            size = config.get("img_size", parameters["img_size"].default)
            side = max(size) if isinstance(size, Sequence) else int(size)
            return [side, 4 * side]
    return []


def measure(encoders: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> list[dict[int, float]]:
    """Median milliseconds of one square picture, float32, batch 1, dense features.

    Args:
        encoders: Config nodes; weights do not matter, equal nodes are measured once.
        sizes: Sides in pixels.

    Returns:
        Milliseconds by size, one mapping per encoder.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = [json.dumps(config, sort_keys=True) for config in encoders]
    models = {
        name: BACKBONES.build(config).eval().to(device)
        for name, config in dict(zip(names, encoders, strict=True)).items()
    }
    times: dict[str, dict[int, float]] = {name: {} for name in models}
    for size in sizes:
        images = torch.randn(1, 3, size, size, device=device)
        first = {name: run_once(model, images) for name, model in models.items()}
        samples: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(ROUNDS):
            for name, model in models.items():
                if not samples[name] or (len(samples[name]) + 1) * first[name] < BUDGET:
                    samples[name].append(run_once(model, images))
        for name in models:
            times[name][size] = 1000 * statistics.median(samples[name])
    return [times[name] for name in names]


@torch.inference_mode()
def run_once(model: nn.Module, images: torch.Tensor) -> float:
    """Seconds of one pass."""
    if images.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    model.forward_features(images)  # type: ignore[operator]
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def machine() -> str:
    """What the times were measured on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"
