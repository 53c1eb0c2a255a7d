"""Times the line-scan operators against a copy of as many bytes and the eager reference, in one run.

Forward moves 22 tensors of x's size with four directions (x, 12 a, 4 lam, 4 u, y), backward 47 (dy, x, a,
lam, u, the state and every gradient). The share of copy bandwidth is the copy's time over the operator's.

    python tools/bench_ops.py --device cpu --threads 2 --json out.json --markdown out.md
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from cgspn.ops import library, line_scan_ref

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
SHAPES = {
    "cpu": [(1, 64, 74, 74), (4, 8, 256, 256), (1, 1, 1024, 1024), (2, 20, 37, 53)],
    "cuda": [(32, 64, 74, 74), (32, 64, 147, 147), (8, 64, 74, 74), (32, 64, 27, 27), (16, 8, 1024, 1024)],
}
LAYOUTS = ("view", "dense", "nchw")
DIRECTIONS = [0, 1, 2, 3]
TENSORS = {"forward": 22, "backward": 47}
REFERENCE_LIMIT = 5_000_000


@dataclass
class Case:
    """One operator call; ``layout`` is how the inputs lie in memory."""

    direction: str
    shape: tuple[int, int, int, int]
    dtype: str
    layout: str

    @property
    def bytes(self) -> int:
        """What one call must move."""
        return TENSORS[self.direction] * torch.Size(self.shape).numel() * DTYPES[self.dtype].itemsize


@dataclass
class Timing:
    """Milliseconds of one contestant: median, 20th and 80th percentile."""

    contestant: str
    median: float
    p20: float
    p80: float


def make_inputs(case: Case, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, a, lam, u in the case's layout: views of one linear layer's output, dense channels-last, or NCHW."""
    b, c, h, w = case.shape
    d = len(DIRECTIONS)
    options = {"device": device, "dtype": DTYPES[case.dtype]}
    if case.layout == "nchw":
        gates = (b, d, c, h, w)
        return (
            torch.randn(b, c, h, w, **options),
            torch.randn(b, d, 3, c, h, w, **options),
            torch.randn(gates, **options),
            torch.randn(gates, **options),
        )
    widths = [d * 3 * c, d * c, d * c]
    if case.layout == "view":
        a, lam, u = torch.randn(b, h, w, sum(widths), **options).split(widths, -1)
    else:
        a, lam, u = (torch.randn(b, h, w, n, **options) for n in widths)
    x = torch.randn(b, h, w, c, **options).permute(0, 3, 1, 2)
    a = a.unflatten(-1, (d, 3, c)).permute(0, 3, 4, 5, 1, 2)
    lam, u = (t.unflatten(-1, (d, c)).permute(0, 3, 4, 1, 2) for t in (lam, u))
    return x, a, lam, u


def contestants(case: Case, device: str) -> dict[str, Callable[[], object]]:
    """The calls to time, by name."""
    x, a, lam, u = make_inputs(case, device)
    source = torch.empty(case.bytes // 8, device=device).normal_()
    target = torch.empty_like(source)
    ops = torch.ops.cgspn
    reference_fits = x.numel() <= REFERENCE_LIMIT
    calls: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source)}
    if case.direction == "forward":
        calls["cgspn"] = lambda: ops.line_scan(x, a, lam, u, DIRECTIONS, None, True, True, False)
        if reference_fits:
            calls["reference"] = lambda: line_scan_ref(x, a, lam, u)
        return calls
    _, state = ops.line_scan(x, a, lam, u, DIRECTIONS, None, True, True, True)
    dy = torch.randn_like(x)
    mask = [True] * 4
    calls["cgspn"] = lambda: ops.line_scan_backward(
        dy, x, a, lam, u, state, DIRECTIONS, None, True, True, mask
    )
    if reference_fits:
        leaves = [t.detach().requires_grad_() for t in (x, a, lam, u)]
        y = line_scan_ref(*leaves)
        calls["reference"] = lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)
    return calls


def measure(call: Callable[[], object], device: str, budget_s: float) -> list[float]:
    """Milliseconds of repeated calls, at least 3, for about ``budget_s`` seconds after one to warm up."""
    call()
    if device == "cuda":
        return _measure_cuda(call, budget_s)
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - start < budget_s and len(times) < 200):
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e3)
    return times


def _measure_cuda(call: Callable[[], object], budget_s: float) -> list[float]:
    # Written between two calls, so that neither finds its inputs in L2.
    flush = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - start < budget_s and len(times) < 200):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.zero_()
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return times


def run_case(case: Case, device: str, budget_s: float, with_reference: bool) -> dict[str, object]:
    """Times all contestants and relates them to the copy."""
    timings = []
    for name, call in contestants(case, device).items():
        if name == "reference" and not with_reference:
            continue
        times = sorted(measure(call, device, budget_s))
        p20, p80 = times[len(times) // 5], times[len(times) * 4 // 5]
        timings.append(Timing(name, statistics.median(times), p20, p80))
    medians = {timing.contestant: timing.median for timing in timings}
    return {
        **asdict(case),
        "bytes": case.bytes,
        "copy_gb_per_s": case.bytes / medians["copy"] / 1e6,
        "gb_per_s": case.bytes / medians["cgspn"] / 1e6,
        "share_of_copy": medians["copy"] / medians["cgspn"],
        "timings": [asdict(timing) for timing in timings],
    }


def environment(device: str) -> dict[str, object]:
    """What the figures were taken with."""
    if device == "cuda":
        machine = torch.cuda.get_device_name()
    else:
        models = [
            line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
        ]
        machine = models[0].split(":")[1].strip() if models else platform.processor()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    return {
        "machine": machine,
        "threads": torch.get_num_threads() if device == "cpu" else None,
        "simd": torch.backends.cpu.get_cpu_capability() if device == "cpu" else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "commit": commit,
        "date": datetime.date.today().isoformat(),
    }


def markdown(results: list[dict], facts: dict[str, object]) -> str:
    """A table of all cases, with what they were measured on."""
    lines = [", ".join(f"{key}: {value}" for key, value in facts.items() if value is not None), ""]
    lines.append(
        "| | (B, C, H, W) | dtype | layout | cgspn ms (p20-p80) | GB/s "
        "| copy ms | copy GB/s | share | reference ms |"
    )
    lines.append("|---|---|---|---|---|---|---|---|---|---|")
    for result in results:
        times = {timing["contestant"]: timing for timing in result["timings"]}
        ours, reference = times["cgspn"], times.get("reference")
        lines.append(
            f"| {result['direction']} | {tuple(result['shape'])} | {result['dtype']} | {result['layout']} "
            f"| {ours['median']:.3f} ({ours['p20']:.3f}-{ours['p80']:.3f}) | {result['gb_per_s']:.1f} "
            f"| {times['copy']['median']:.3f} | {result['copy_gb_per_s']:.1f} "
            f"| {result['share_of_copy']:.0%} "
            f"| {'' if reference is None else format(reference['median'], '.1f')} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["fp32", "bf16"])
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument(
        "--directions", nargs="+", choices=TENSORS, default=list(TENSORS), help="passes to time"
    )
    parser.add_argument("--shape", type=int, nargs=4, action="append", metavar=("B", "C", "H", "W"))
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds per contestant")
    parser.add_argument("--no-reference", action="store_true", help="leave the eager reference out")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    status = library.STATUS[args.device]
    if not status.active:
        parser.error(f"no native {args.device} kernels: {status.reason}")
    if args.threads:
        torch.set_num_threads(args.threads)
    shapes = [tuple(shape) for shape in args.shape] if args.shape else SHAPES[args.device]
    results = []
    for direction in args.directions:
        for dtype in args.dtypes:
            for layout in args.layouts:
                for shape in shapes:
                    case = Case(direction, shape, dtype, layout)
                    results.append(run_case(case, args.device, args.budget, not args.no_reference))
                    print(markdown(results[-1:], {}).splitlines()[-1], flush=True)
    facts = environment(args.device)
    if args.json:
        args.json.write_text(json.dumps({"environment": facts, "results": results}, indent=1))
    if args.markdown:
        args.markdown.write_text(markdown(results, facts))


if __name__ == "__main__":
    main()
