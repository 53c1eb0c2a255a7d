"""The report's plots, as PNG files in memory."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cgspn.reports.runs import Curve

COLOURS = ("#2563eb", "#d97706", "#059669", "#be185d", "#7c3aed", "#0891b2", "#65a30d", "#475569")
PANEL = (4.2, 2.7)
DOTS_PER_INCH = 160
TITLE: dict[str, Any] = {"fontsize": 9, "fontweight": "bold"}
# A training curve is drawn as the mean of this share of its points around each point.
SMOOTHING = 0.04


def loss_curves(panels: Sequence[tuple[str, Mapping[str, Curve]]]) -> bytes:
    """One panel per title, one line per curve; noisy training curves are drawn smoothed over their points."""
    columns = min(len(panels), 2)
    figure, axes = grid(len(panels), columns)
    for axis, (title, curves) in zip(axes, panels, strict=False):
        axis.set_title(title, **TITLE)
        axis.set_xlabel("step")
        for colour, (name, curve) in zip(cycle(len(curves)), curves.items(), strict=True):
            steps, values = zip(*curve, strict=True)
            if len(curve) > 30:
                axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
                axis.plot(steps, smooth(values), color=colour, label=name)
            else:
                axis.plot(steps, values, color=colour, marker="o", markersize=3, label=name)
        legend(axis)
    return png(figure)


def block_errors(title: str, curves: Mapping[int, Curve], end: Mapping[int, float]) -> bytes:
    """Relative error of each block: over the steps, and at the end."""
    figure, (over_time, last) = grid(2, 2)
    depth = len(curves)
    shades = [
        (0.12, 0.25 + 0.5 * i / max(depth - 1, 1), 0.9 - 0.5 * i / max(depth - 1, 1)) for i in range(depth)
    ]
    for shade, (block, curve) in zip(shades, sorted(curves.items()), strict=True):
        steps, values = zip(*curve, strict=True)
        over_time.plot(steps, values, color=shade, marker="o", markersize=3, label=f"block {block}")
        last.bar(block, end[block], color=shade)
    over_time.set_title(title, **TITLE)
    over_time.set_xlabel("step")
    over_time.set_ylabel("relative error")
    if depth <= 8:
        legend(over_time, columns=4)
    last.set_title("at the end", **TITLE)
    last.set_xlabel("block")
    last.axhline(1.0, color="#94a3b8", linewidth=1, linestyle="--")
    last.annotate(
        "predicting the mean", (0.02, 1.0), xycoords=("axes fraction", "data"), va="bottom", fontsize=7
    )
    last.set_ylim(0, max(1.15, 1.05 * max(end.values())))
    last.set_xticks(sorted(curves) if depth <= 16 else sorted(curves)[:: depth // 8])
    return png(figure)


def grid(count: int, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels."""
    rows = -(-count // columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_visible(False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
        axis.xaxis.label.set_fontsize(8)
        axis.yaxis.label.set_fontsize(8)
    return figure, axes


def legend(axis: Axes, columns: int = 3) -> None:
    """A legend inside the panel, or below it where it would hide too much."""
    if len(axis.get_legend_handles_labels()[0]) <= 2:
        axis.legend()
    else:
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns)


def cycle(count: int) -> list[str]:
    """``count`` line colours."""
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def smooth(values: Sequence[float]) -> list[float]:
    """Centred moving means."""
    reach = max(1, round(len(values) * SMOOTHING))
    means = []
    for i in range(len(values)):
        window = values[max(i - reach, 0) : i + reach + 1]
        means.append(sum(window) / len(window))
    return means


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    for axis in figure.axes:
        if (box := axis.get_legend()) is not None:
            box.get_frame().set(edgecolor="none", alpha=0.75)
            for text in box.get_texts():
                text.set_fontsize(8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    return buffer.getvalue()
