"""Inference: sub-layers, blocks, whole encoders; each function yields the rows of a table."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import torch

from encbench import timing
from encbench.setting import Row, Setting, attention_context


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
    blocks = {name: setting.build(name, depth=1).to(torch.bfloat16).eval() for name in ("vit", "cgspn")}
    compiled = {name: torch.compile(encoder.blocks[0], dynamic=True) for name, encoder in blocks.items()}
    for grid in setting.grids:
        row: Row = {"batch": setting.batch, "grid": grid}
        for name, encoder in blocks.items():
            x = setting.tokens(encoder, grid)
            with attention_context(setting, name, grid, setting.batch) as backend:
                if name == "vit":
                    row["attention"] = backend
                ways = {"eager": encoder.blocks[0]} | (
                    {"compiled": compiled[name]} if setting.compile else {}
                )
                for way, one in ways.items():
                    times = timing.measure(partial(one, x), setting.budget_s, setting.device)
                    row[f"{name} {way} ms"] = times["ms"]
            row[f"{name} ms"] = min(row[f"{name} {way} ms"] for way in ways)
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
