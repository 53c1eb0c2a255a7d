"""Where the time of a block goes."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator

import torch

from encbench.setting import Row, Setting


@torch.inference_mode()
def profile(setting: Setting) -> Iterator[Row]:
    """Where the time of one C-GSPN block goes, kernel by kernel."""
    encoder = setting.build("cgspn", depth=1).to(torch.bfloat16).eval()
    one = encoder.blocks[0]
    activities = [torch.profiler.ProfilerActivity.CUDA]
    for grid in setting.grids:
        x = setting.tokens(encoder, grid)
        one(x)
        torch.cuda.synchronize()
        repeats = 5
        with torch.profiler.profile(activities=activities) as trace:
            for _ in range(repeats):
                one(x)
            torch.cuda.synchronize()
        times: defaultdict[str, list[float]] = defaultdict(list)
        for event in trace.events():
            if event.device_type == torch.profiler.DeviceType.CUDA:
                times[event.name].append(event.device_time / 1e3)
        total = sum(map(sum, times.values())) / repeats
        for name, values in sorted(times.items(), key=lambda item: -sum(item[1])):
            yield {
                "grid": grid,
                "kernel": name[:90],
                "calls": len(values) / repeats,
                "ms a call": statistics.median(values),
                "share": sum(values) / repeats / total,
            }
