from __future__ import annotations

import datetime
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import cgspn
from cgspn.reports import latency, pages, pictures, plots
from cgspn.reports.rows import DASH, RETRIEVAL, Row, class_table, read_rows, table
from cgspn.reports.runs import Curve, Run, with_sources

PROBE = "SegmentationModule"
BLOCK_ERROR = re.compile(r"(val|train)/relative_error/block_(\d+)")


def write_report(arguments: Sequence[str], out: Path, sizes: Sequence[int] | None = None) -> Path:
    """Writes ``report.md``, ``report.html`` and ``figures/`` into ``out``.

    Args:
        arguments: Run folders, each as ``RUN`` or ``LABEL=RUN``; the rows of the report in their order.
        out: Folder to write into; made if missing.
        sizes: Picture sizes to time the encoders at; None chooses two, an empty list leaves it out.

    Returns:
        Path of the HTML page.

    Raises:
        ValueError: If a run folder is missing or two rows have one label.
    """
    rows = read_rows(arguments)
    runs = list(with_sources([row.run for row in rows]))
    notes = [note for run in runs for note in run.notes]
    sizes = time_encoders(rows, sizes, notes)
    header, cells = table(rows, sizes)
    content = pages.Content(
        subtitle=[
            f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
            f"{platform.machine()}, {latency.machine()}",
            f"cgspn {cgspn.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        ],
        header=header,
        cells=cells,
        caption=caption(rows, sizes),
        labels=[row.label for row in rows],
        classes=class_table(rows),
        sheet=pictures.sheet(rows),
        figures=figures(rows, runs),
        runs=runs,
        notes=notes,
    )
    return pages.write(content, out)


def time_encoders(rows: Sequence[Row], sizes: Sequence[int] | None, notes: list[str]) -> list[int]:
    """Fills in the rows' latencies and returns the sizes; encoders that cannot be built get a note."""
    known = [row for row in rows if isinstance(row.run.segmentation.get("encoder"), Mapping)]
    usable = []
    for row in known:
        try:
            latency.BACKBONES.check(row.run.segmentation["encoder"])
            usable.append(row)
        except ValueError as error:
            notes.append(f"{row.label} could not be timed: {error}")
    configs = [row.run.segmentation["encoder"] for row in usable]
    chosen = latency.default_sizes(configs) if sizes is None else list(sizes)
    if chosen and configs:
        for row, times in zip(usable, latency.measure(configs, chosen), strict=True):
            row.latency = times
    return chosen


def caption(rows: Sequence[Row], sizes: Sequence[int]) -> list[str]:
    """What the table's columns mean."""
    retrieval = "Retrieval in percent, by the run that the weights come from; any equal caption is a hit"
    counts = sorted({c for row in rows if (c := row.retrieval("num_captions")) is not None})
    if counts:
        retrieval += f" ({' or '.join(f'{c:.0f}' for c in counts)} distinct captions)"
    lines = [
        "IoU and accuracies in percent; mIoU and mAcc are means over the classes in the ground truth.",
        f"{retrieval}.",
    ]
    if any(row.retrieval(name) is None for row in rows for name in RETRIEVAL.values()):
        lines.append(f"{DASH}: no such figure, as for an encoder that never met a caption.")
    if sizes:
        lines.append(
            f"Latency: median milliseconds of one picture through the encoder, float32, {latency.machine()}."
        )
    return lines


def figures(rows: Sequence[Row], runs: Sequence[Run]) -> list[pages.Figure]:
    """Loss curves of the encoders' trainings and of the probes, and the block errors of stage 1."""
    found = []
    panels = [(run.name, losses(run)) for run in runs if run.kind != PROBE and losses(run)]
    probes = {
        row.label: row.run.curves["train/loss"]
        for row in rows
        if row.run.kind == PROBE and "train/loss" in row.run.curves
    }
    if probes:
        panels.append(("segmentation, train/loss", probes))
    if panels:
        found.append(
            pages.Figure("losses", "Loss curves", "Loss by training step.", plots.loss_curves(panels))
        )
    for run in runs:
        curves, end = block_curves(run)
        if curves:
            found.append(
                pages.Figure(
                    "block_errors_" + re.sub(r"\W+", "_", run.name),
                    f"Relative error per block: {run.name}",
                    "Squared distance of student and teacher branch over the variance of the teacher's; "
                    "1 is what predicting the mean gives.",
                    plots.block_errors("by step", curves, end),
                )
            )
    return found


def losses(run: Run) -> dict[str, Curve]:
    """Training and validation loss."""
    return {name: run.curves[name] for name in ("train/loss", "val/loss") if run.curves.get(name)}


def block_curves(run: Run) -> tuple[dict[int, Curve], dict[int, float]]:
    """Relative error by block: the finest curves, and the last values, of the validation if there was one."""
    found: dict[str, dict[int, Curve]] = {}
    for name, curve in run.curves.items():
        if match := BLOCK_ERROR.fullmatch(name):
            found.setdefault(match[1], {})[int(match[2])] = curve
    best = found.get("val") or found.get("train") or {}
    curves = max(found.values(), key=lambda blocks: sum(map(len, blocks.values())), default={})
    return curves, {block: curve[-1][1] for block, curve in best.items()}
