"""Times one case: all its contestants, in one run, related to the copy and to the floors."""

from __future__ import annotations

import gc
from dataclasses import asdict

import torch

from cgspn.ops import DIRECTIONS, line_scan
from opbench import timing
from opbench.contestants import CONTESTANTS, Call, Contestant, gspn_scan_ms, make_inputs
from opbench.table import Case

L2_BYTES = 256 * 2**20  # more than any card's L2: less traffic than this is rotated and replayed as a graph
Result = dict[str, object]


def run(case: Case, phase: str, device: str, budget_s: float, with_slow: bool) -> Result:
    """The result of one row, as it goes into the record."""
    takes_part = [c for c in CONTESTANTS if device in c.devices and (with_slow or not c.slow)]
    measure = _on_cuda if device == "cuda" else _on_cpu
    times = measure(case, phase, takes_part, budget_s)
    # Others use the CPU too: what they do can only lengthen a call.
    kept = {name: t.median if device == "cuda" else t.least for name, t in times.items()}
    ours = kept["cgspn"]
    result: Result = {
        "shape": case.shape,
        "dtype": case.dtype,
        "layout": case.layout,
        "variant": case.variant,
        "pass": phase,
        "statistic": "median" if device == "cuda" else "least",
        "tensors": case.tensors(phase),
        "gb_per_s": case.bytes(phase) / ours / 1e6,
        "copy_gb_per_s": case.bytes(phase) / kept["copy"] / 1e6,
        "share_of_ideal": kept["copy"] / ours,
        "times": {name: asdict(t) for name, t in times.items()},
    }
    if "GSPN" in times:
        result["gspn_scan_ms"] = gspn_scan_ms(case, phase)
    if device == "cuda":
        schedule = case.schedule_tensors(phase)
        result["schedule_tensors"] = schedule
        result["share_of_schedule"] = kept["copy"] / ours * schedule / case.tensors(phase)
        result |= _more_on_cuda(case, phase)
    return result


def _on_cpu(
    case: Case, phase: str, contestants: list[Contestant], budget_s: float
) -> dict[str, timing.Timing]:
    inputs = make_inputs(case, "cpu")
    calls = {c.name: c.build(case, phase, inputs) for c in contestants}
    present = {name: call for name, call in calls.items() if call is not None}
    slow = {c.name for c in contestants if c.slow} & present.keys()
    times = timing.take_turns({name: call for name, call in present.items() if name not in slow}, budget_s)
    for name in slow:
        times |= timing.take_turns({name: present[name]}, budget_s / 10)
    return times


def _on_cuda(
    case: Case, phase: str, contestants: list[Contestant], budget_s: float
) -> dict[str, timing.Timing]:
    small = case.bytes(phase) < L2_BYTES
    sets = min(timing.GRAPH_CALLS, int(L2_BYTES // case.bytes(phase)) + 1) if small else 1
    times = {}
    for contestant in contestants:
        as_graph = small and contestant.name in ("copy", "cgspn")
        calls: list[Call] = []
        for _ in range(sets if as_graph else 1):
            call = contestant.build(case, phase, make_inputs(case, "cuda"))
            if call is not None:
                calls.append(call)
        if calls:
            times[contestant.name] = (timing.graph if as_graph else timing.events)(calls, budget_s)
        del calls
        call = None
        _free()
    return times


def _more_on_cuda(case: Case, phase: str) -> Result:
    """Host time of the public function, and the peak of forward and backward against what must be alive."""
    more: Result = {}
    if phase == "forward" and case.bytes(phase) < L2_BYTES:
        more = {"host_us": _host_us(case)}
    if phase == "backward":
        more = _peak(case)
    _free()
    return more


def _host_us(case: Case) -> float:
    inputs, names = make_inputs(case, "cuda"), _names(case)
    return timing.host_us(lambda: line_scan(*inputs, directions=names, chunk=case.chunk))


def _peak(case: Case) -> Result:
    inputs = [t.requires_grad_() for t in make_inputs(case, "cuda")]
    dy = torch.randn_like(inputs[0])
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    y = line_scan(*inputs, directions=_names(case), chunk=case.chunk)
    torch.autograd.grad(y, inputs, dy)
    added = torch.cuda.max_memory_allocated() - before
    outside = sum(t.numel() for t in inputs) * dy.element_size() + dy.nbytes
    # Inputs and their gradients, y and dy, and one state a direction.
    alive = 2 * outside + len(case.directions) * case.image_bytes
    return {"peak_mib": (added + outside) / 2**20, "peak_over_alive": (added + outside) / alive - 1}


def _names(case: Case) -> list[str]:
    return [DIRECTIONS[d] for d in case.directions]


def _free() -> None:
    gc.collect()
    torch.cuda.empty_cache()
