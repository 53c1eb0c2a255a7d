"""The measurements of ``bench_encoder.py``, one function a part; each returns rows of a table."""

from __future__ import annotations

import contextlib
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import timing
from cgspn.backbones import VisionEncoder
from cgspn.losses import TapLoss
from cgspn.modules.stage2 import TapConfig
from cgspn.registry import BACKBONES

Row = dict[str, Any]
HYBRID = (8, 17, 26)
BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


@dataclass(frozen=True)
class Setting:
    """What is measured, for all parts.

    Attributes:
        size: The preset's size, as in ``vit_<size>``.
        grids: Sides of the token grid.
        batch: Pictures at once where a part does not choose itself.
        device: ``cuda`` or ``cpu``.
        budget_s: Seconds that one figure may take.
        models: Which of ``vit``, ``cgspn``, ``hybrid``.
        compile: Whether compiled blocks are timed too.
    """

    size: str
    grids: tuple[int, ...]
    batch: int
    device: str
    budget_s: float
    models: tuple[str, ...]
    compile: bool

    def build(self, name: str, depth: int | None = None) -> VisionEncoder:
        """A randomly initialised encoder whose propagation branches are not at their start of zero."""
        node: dict[str, Any] = {"type": f"{'vit' if name == 'vit' else 'cgspn'}_{self.size}"}
        if name == "hybrid":
            node["attention_at"] = HYBRID
        if depth is not None:
            node["depth"] = depth
        torch.manual_seed(0)
        with torch.device(self.device):
            encoder = BACKBONES.build(node)
        for block in encoder.blocks:
            if hasattr(block.operator, "up"):
                nn.init.normal_(block.operator.up.weight, std=0.02)
        return cast(VisionEncoder, encoder)

    def tokens(self, encoder: VisionEncoder, grid: int, batch: int | None = None) -> Tensor:
        """Random input of a block, bfloat16."""
        shape = (batch or self.batch, grid, grid, encoder.embed_dim)
        return torch.randn(shape, device=self.device, dtype=torch.bfloat16)

    def images(self, encoder: VisionEncoder, grid: int, batch: int, dtype: torch.dtype) -> Tensor:
        """Random pictures."""
        side = grid * encoder.patch_size
        return torch.randn(batch, 3, side, side, device=self.device, dtype=dtype)


@contextlib.contextmanager
def fastest_attention(setting: Setting, encoder: VisionEncoder, grid: int, batch: int) -> Iterator[str]:
    """Runs the body with the SDPA backend that is fastest at this size, and says which."""
    if setting.device != "cuda":
        yield "cpu"
        return
    heads = cast(Any, encoder.blocks[0]).operator.num_heads
    shape = (batch, heads, grid * grid, encoder.embed_dim // heads)
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    times = {}
    for name, backend in BACKENDS.items():
        with sdpa_kernel(backend), contextlib.suppress(RuntimeError):
            times[name] = timing.measure(partial(F.scaled_dot_product_attention, q, k, v), 0.1)["ms"]
    del q, k, v
    fastest = min(times, key=lambda name: times[name])
    with sdpa_kernel(BACKENDS[fastest]):
        yield fastest


def attention_context(setting: Setting, name: str, grid: int, batch: int) -> Any:
    """``fastest_attention`` where the model has attention."""
    if name == "cgspn":
        return contextlib.nullcontext("none")
    return fastest_attention(setting, setting.build("vit", depth=1), grid, batch)


@torch.inference_mode()
def sublayer(setting: Setting) -> Iterator[Row]:
    """Norm, operator and residual of one block, against a copy of three times x's bytes."""
    encoder = setting.build("cgspn", depth=1).to(torch.bfloat16).eval()
    block = cast(Any, encoder.blocks[0])
    for batch in sorted({1, setting.batch}):
        for grid in setting.grids:
            x = setting.tokens(encoder, grid, batch)
            # A copy that reads and writes 1.5 times x's bytes moves what the sub-layer must.
            source = torch.randn(x.numel() * 3 // 2, device=setting.device).to(x.dtype)
            target = torch.empty_like(source)
            floor = timing.measure(partial(target.copy_, source), setting.budget_s, setting.device)
            eager = timing.measure(partial(block.add_mix, x), setting.budget_s, setting.device)
            row: Row = {"batch": batch, "grid": grid, "floor ms": floor["ms"], "eager ms": eager["ms"]}
            if setting.device == "cuda":
                replay = timing.as_graph(partial(block.add_mix, x))
                row["graph ms"] = timing.measure(replay, setting.budget_s)["ms"]
            row["eager over floor"] = eager["ms"] / floor["ms"]
            yield row


@torch.inference_mode()
def block(setting: Setting) -> Iterator[Row]:
    """One block of either kind, eager and compiled; the better of the two counts for each."""
    for grid in setting.grids:
        row: Row = {"batch": setting.batch, "grid": grid}
        for name in ("vit", "cgspn"):
            encoder = setting.build(name, depth=1).to(torch.bfloat16).eval()
            one = encoder.blocks[0]
            x = setting.tokens(encoder, grid)
            with attention_context(setting, name, grid, setting.batch) as backend:
                if name == "vit":
                    row["attention"] = backend
                row[f"{name} eager ms"] = timing.measure(partial(one, x), setting.budget_s, setting.device)[
                    "ms"
                ]
                best = row[f"{name} eager ms"]
                if setting.compile:
                    compiled = torch.compile(one, dynamic=False)
                    row[f"{name} compiled ms"] = timing.measure(
                        partial(compiled, x), setting.budget_s, setting.device
                    )["ms"]
                    best = min(best, row[f"{name} compiled ms"])
                row[f"{name} ms"] = best
            torch.compiler.reset()
            timing.release()
        row["speed-up"] = row["vit ms"] / row["cgspn ms"]
        yield row


@torch.inference_mode()
def encoder(setting: Setting) -> Iterator[Row]:
    """Pictures a second and peak memory of whole encoders; the largest batch by extrapolated memory."""
    for grid in setting.grids:
        rates: dict[str, float] = {}
        for name in setting.models:
            model = setting.build(name).to(torch.bfloat16).eval()
            side = grid * model.patch_size
            peaks = {
                batch: timing.peak_bytes(partial(model, setting.images(model, grid, batch, torch.bfloat16)))
                for batch in (2, 4)
            }
            per_picture = (peaks[4] - peaks[2]) / 2
            total = torch.cuda.get_device_properties(0).total_memory
            largest = int((0.95 * total - (peaks[2] - 2 * per_picture)) // per_picture)
            batch = min(setting.batch, largest)
            images = setting.images(model, grid, batch, torch.bfloat16)
            with attention_context(setting, name, grid, batch) as backend:
                peak = timing.peak_bytes(partial(model, images))
                ms = timing.measure(partial(model, images), setting.budget_s, flush=False)["ms"]
            rates[name] = 1e3 * batch / ms
            yield {
                "pixels": side,
                "model": name,
                "attention": backend,
                "batch": batch,
                "images/s": rates[name],
                "over vit": rates[name] / rates["vit"] if "vit" in rates else None,
                "peak GiB": peak / 2**30,
                "MiB a picture": per_picture / 2**20,
                "largest batch": largest,
            }
            del model, images
            timing.release()


def train(setting: Setting) -> Iterator[Row]:
    """Forward, backward and AdamW in bf16-mixed precision, with equal batches; plain and with taps."""
    for grid in setting.grids:
        rates: dict[tuple[str, str], float] = {}
        for name, kind in [(n, "plain") for n in setting.models] + [
            ("cgspn", "checkpointing"),
            ("cgspn", "taps and teacher"),
        ]:
            rates[name, kind], row = _train_one(setting, grid, name, kind)
            row["over vit"] = rates[name, kind] / rates["vit", "plain"] if ("vit", "plain") in rates else None
            yield row
            timing.release()


def _train_one(setting: Setting, grid: int, name: str, kind: str) -> tuple[float, Row]:
    model = setting.build(name).train()
    model.set_grad_checkpointing(kind == "checkpointing")
    images = setting.images(model, grid, setting.batch, torch.float32)
    parameters: list[nn.Parameter] = list(model.parameters())
    taps: list[TapLoss] = []
    teacher: VisionEncoder | None = None
    config = TapConfig()
    tapped = config.indices(model.depth)
    if kind == "taps and teacher":
        teacher = setting.build("vit").eval().requires_grad_(False)
        arguments = (config.kl, config.temperature, config.kl_direction, config.standardize)
        width = model.embed_dim
        taps = [TapLoss(width, width, *arguments).to(setting.device) for _ in range(2 * len(tapped))]
        parameters += [p for tap in taps for p in tap.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=setting.device == "cuda")
    kept = 0

    def step() -> None:
        nonlocal kept
        with torch.autocast(setting.device, torch.bfloat16):
            before = torch.cuda.memory_allocated()
            if teacher is None:
                loss = model(images).float().square().mean()
                kept = torch.cuda.memory_allocated() - before
            else:
                with torch.no_grad():
                    theirs = teacher.forward_with_taps(images, tapped)
                ours = model.forward_with_taps(images, tapped)
                pairs = [(ours.branches[i], theirs.branches[i]) for i in tapped]
                pairs += [(ours.outputs[i], theirs.outputs[i]) for i in tapped]
                terms = [sum(tap(*pair)) for tap, pair in zip(taps, pairs, strict=True)]
                loss = ours.summary.float().square().mean() + torch.stack(terms).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    with attention_context(
        setting, "cgspn" if name == "cgspn" and teacher is None else name, grid, setting.batch
    ):
        step()
        peak = timing.peak_bytes(step)
        ms = timing.measure(step, setting.budget_s, flush=False)["ms"]
        teacher_ms = None
        if teacher is not None:
            with torch.no_grad(), torch.autocast(setting.device, torch.bfloat16):
                frozen = teacher
                teacher_ms = timing.measure(
                    partial(frozen.forward_with_taps, images, tapped), setting.budget_s / 2, flush=False
                )["ms"]
    rate = 1e3 * setting.batch / ms
    row: Row = {
        "pixels": grid * model.patch_size,
        "model": name,
        "kind": kind,
        "batch": setting.batch,
        "images/s": rate,
        "ms a step": ms,
        "teacher's share": None if teacher_ms is None else teacher_ms / ms,
        "kept GiB": kept / 2**30 or None,
        "peak GiB": peak / 2**30,
    }
    return rate, row


@torch.inference_mode()
def latency(setting: Setting) -> Iterator[Row]:
    """One picture through the whole encoder, eager and as a CUDA graph."""
    for name in setting.models:
        model = setting.build(name).to(torch.bfloat16).eval()
        for grid in setting.grids:
            images = setting.images(model, grid, 1, torch.bfloat16)
            with attention_context(setting, name, grid, 1) as backend:
                eager = timing.measure(partial(model, images), setting.budget_s, flush=False)["ms"]
                graph = timing.measure(
                    timing.as_graph(partial(model, images)), setting.budget_s, flush=False
                )["ms"]
            yield {
                "pixels": grid * model.patch_size,
                "model": name,
                "attention": backend,
                "eager ms": eager,
                "graph ms": graph,
            }
        del model
        timing.release()


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


PARTS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "sublayer": sublayer,
    "block": block,
    "encoder": encoder,
    "train": train,
    "latency": latency,
    "profile": profile,
}
GRIDS: dict[str, Sequence[int]] = {
    "sublayer": (27, 37, 74, 147),
    "block": (27, 37, 74, 147),
    "encoder": (27, 37, 54, 74, 147),
    "train": (27, 54, 74),
    "latency": (74, 147),
    "profile": (74,),
}
