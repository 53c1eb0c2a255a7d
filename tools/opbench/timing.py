"""How a call is timed, on the CPU and on a CUDA device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Call = Callable[[], object]

GRAPH_CALLS = 20
MOST_REPEATS = 300


@dataclass
class Timing:
    """Milliseconds of one call."""

    median: float
    p20: float
    p80: float
    least: float
    repeats: int
    how: str  # what a repeat was: wall clock, events, graph

    @classmethod
    def of(cls, times: list[float], how: str) -> Timing:
        """Sums up the times of all repeats."""
        times = sorted(times)
        last = len(times) - 1
        return cls(
            statistics.median(times), times[last // 5], times[last * 4 // 5], times[0], len(times), how
        )


def take_turns(calls: dict[str, Call], budget_s: float) -> dict[str, Timing]:
    """Times calls on the CPU, one of each in turn, so that other work meets all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    begin, rounds = time.perf_counter(), 0
    while rounds < 10 or (time.perf_counter() - begin < budget_s * len(calls) and rounds < MOST_REPEATS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - start) * 1e3)
        rounds += 1
    return {name: Timing.of(values, "wall clock, in turns") for name, values in times.items()}


def events(calls: list[Call], budget_s: float) -> Timing:
    """Times eager calls by CUDA events; ``calls`` are the same call on inputs that together exceed L2."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - begin < budget_s and len(times) < MOST_REPEATS):
        marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in calls]
        for call, (start, end) in zip(calls, marks, strict=True):
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        times += [start.elapsed_time(end) for start, end in marks]
    return Timing.of(times, "events")


def graph(calls: list[Call], budget_s: float) -> Timing:
    """Times the replay of a graph of calls on rotated inputs, per call: no host time between the kernels."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls[0]()
    torch.cuda.current_stream().wait_stream(stream)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        for i in range(GRAPH_CALLS):
            calls[i % len(calls)]()
    timing = events([recorded.replay], budget_s)
    per_call = [value / GRAPH_CALLS for value in (timing.median, timing.p20, timing.p80, timing.least)]
    return Timing(*per_call, timing.repeats, f"graph of {GRAPH_CALLS} calls")


def host_us(call: Call, repeats: int = 50) -> float:
    """Microseconds that an eager call keeps the host busy, as long as the device's queue is not full."""
    times = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        times.append((time.perf_counter() - start) / repeats * 1e6)
    torch.cuda.synchronize()
    return min(times)
