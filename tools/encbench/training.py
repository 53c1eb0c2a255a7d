"""Training: steps of equal batches, plain, with recomputed activations, and with taps and the teacher."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from cgspn.backbones import VisionEncoder
from cgspn.losses import TapLoss
from cgspn.modules.stage2 import TapConfig
from encbench import timing
from encbench.setting import Row, Setting, attention_context

PLAIN, CHECKPOINTING, TAPS = "plain", "checkpointing", "taps and teacher"


def train(setting: Setting) -> Iterator[Row]:
    """Forward, backward and AdamW in bf16-mixed precision, with equal batches; plain and with taps."""
    for grid in setting.grids:
        rates: dict[tuple[str, str], float] = {}
        cases = [(name, PLAIN) for name in setting.models]
        cases += [("cgspn", CHECKPOINTING), ("vit", TAPS), ("cgspn", TAPS)]
        for name, kind in cases:
            rates[name, kind], row = _train_one(setting, grid, name, kind)
            base = rates.get(("vit", TAPS if kind == TAPS else PLAIN))
            row["over vit"] = rates[name, kind] / base if base else None
            yield row
            timing.release()


def _train_one(setting: Setting, grid: int, name: str, kind: str) -> tuple[float, Row]:
    model = setting.build(name).train()
    model.set_grad_checkpointing(kind == CHECKPOINTING)
    images = setting.images(model, grid, setting.batch, torch.float32)
    parameters: list[nn.Parameter] = list(model.parameters())
    taps: list[TapLoss] = []
    teacher: VisionEncoder | None = None
    config = TapConfig()
    tapped = config.indices(model.depth)
    if kind == TAPS:
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
