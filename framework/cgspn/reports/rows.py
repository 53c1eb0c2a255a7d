"""The report's table: one row per run, a dash where a run does not tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from cgspn.reports.runs import Run, read_run

DASH = "\N{EN DASH}"
RETRIEVAL = {"image to text R@1": "image_to_text_R@1", "text to image R@1": "text_to_image_R@1"}


@dataclasses.dataclass
class Row:
    """One encoder of the report: its label, its run and the run its weights come from."""

    label: str
    run: Run
    origin: Run | None
    latency: dict[int, float] = dataclasses.field(default_factory=dict)

    def retrieval(self, name: str) -> float | None:
        """A retrieval figure of this run or of the one its weights come from, in percent."""
        for run in (self.run, self.origin):
            for stage in ("test", "val"):
                key = f"{stage}/retrieval/{name}"
                if run is not None and key in run.metrics:
                    return run.metrics[key]
                if run is not None and run.curves.get(key):
                    return run.curves[key][-1][1]
        return None


def read_rows(arguments: Sequence[str]) -> list[Row]:
    """Reads runs given as ``RUN`` or ``LABEL=RUN``.

    Raises:
        ValueError: If a run folder is missing, or a label is used twice.
    """
    rows: list[Row] = []
    for argument in arguments:
        label, equals, path = argument.partition("=")
        if not equals or Path(argument).is_dir():
            label, path = "", argument
        if not path:
            raise ValueError(f"{argument!r} names no run folder: give LABEL=RUN.")
        run = read_run(path)
        folder = run.init_from()
        rows.append(Row(label or run.name, run, None if folder is None else read_run(folder)))
    labels = [row.label for row in rows]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise ValueError(f"Two runs are called {twice!r}; give them labels: LABEL=RUN.")
    return rows


def table(rows: Sequence[Row], sizes: Sequence[int]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the results."""
    header = ["encoder", "parameters", "mIoU", "aAcc", "mAcc", "classes", *RETRIEVAL]
    header += [f"ms at {size} px" for size in sizes]
    cells = []
    for row in rows:
        figures = row.run.segmentation
        cells.append(
            [
                row.label,
                count(figures.get("num_parameters")),
                *(decimal(figures.get(name)) for name in ("mIoU", "aAcc", "mAcc")),
                str(figures.get("num_classes_present", DASH)),
                *(decimal(row.retrieval(name)) for name in RETRIEVAL.values()),
                *(milliseconds(row.latency.get(size)) for size in sizes),
            ]
        )
    return header, cells


def class_table(rows: Sequence[Row]) -> list[tuple[str, float, list[float | None]]]:
    """Name, share of the true pixels in percent and each row's IoU, of every class, largest first."""
    pixels: dict[str, int] = {}
    for row in rows:
        for entry in row.run.segmentation.get("classes", []):
            pixels.setdefault(entry["name"], entry["pixels"])
    values = [
        {entry["name"]: entry["IoU"] for entry in row.run.segmentation.get("classes", [])} for row in rows
    ]
    total = max(sum(pixels.values()), 1)
    names = sorted(pixels, key=lambda name: -pixels[name])
    return [(name, 100 * pixels[name] / total, [v.get(name) for v in values]) for name in names]


def count(value: int | None) -> str:
    """Parameters in words, such as 0.70 M."""
    if value is None:
        return DASH
    for unit, size in (("M", 10**6), ("k", 10**3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return str(value)


def decimal(value: float | None) -> str:
    """One decimal."""
    return DASH if value is None else f"{value:.1f}"


def milliseconds(value: float | None) -> str:
    """Three significant digits."""
    if value is None:
        return DASH
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
