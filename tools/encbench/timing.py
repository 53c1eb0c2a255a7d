"""Times by CUDA events and peak memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import torch


def measure(
    call: Callable[[], Any], budget_s: float, device: str = "cuda", flush: bool = True
) -> dict[str, float]:
    """Median, 20th and 80th percentile in ms of repeated calls, at least 3, for about ``budget_s`` seconds.

    Args:
        call: What is timed; it has run once before.
        budget_s: Seconds.
        device: ``cuda`` or ``cpu``.
        flush: Whether L2 is overwritten between two calls.
    """
    call()
    dirty = torch.empty(256 * 2**20, dtype=torch.uint8, device=device) if flush and device == "cuda" else None
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - start < budget_s and len(times) < 100):
        if device == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            if dirty is not None:
                dirty.zero_()
            begin.record()
            call()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            before = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - before))
    times.sort()
    return {"ms": times[len(times) // 2], "p20": times[len(times) // 5], "p80": times[len(times) * 4 // 5]}


def as_graph(call: Callable[[], Any]) -> Callable[[], Any]:
    """The replay of ``call`` captured as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most device memory that is allocated while ``call`` runs, what was there before included."""
    release()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def release() -> None:
    """Gives freed device memory back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
