"""Time against size: the operator, attention, GSPN as published, and the floors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opbench.record import ours_ms

PATCH = 14


def draw(record: dict[str, Any], path: Path) -> None:
    """Writes the forward times of the square grids at batch 32 and 64 channels as a picture.

    Raises:
        ValueError: If the record withholds its comparisons or has no such rows.
    """
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    if record["withheld"]:
        raise ValueError(f"nothing is compared in this record: {record['withheld']}.")
    rows = [
        row
        for row in record["rows"]
        if tuple(row["shape"][:2]) == (32, 64)
        and row["pass"] == "forward"
        and row["dtype"] == "bf16"
        and row["layout"] == "view"
        and not row["variant"]
    ]
    rows.sort(key=lambda row: row["shape"][2])
    if not rows:
        raise ValueError("the record has no forward rows of batch 32 with 64 channels in bf16.")
    sides = [row["shape"][2] * PATCH for row in rows]

    def times(name: str) -> tuple[list[int], list[float]]:
        kept = [(side, row) for side, row in zip(sides, rows, strict=True) if name in row["times"]]
        extra = [row["gspn_scan_ms"] if name == "GSPN" else 0 for _, row in kept]
        return [s for s, _ in kept], [
            row["times"][name]["median"] + more for (_, row), more in zip(kept, extra, strict=True)
        ]

    plt.rcParams["svg.hashsalt"] = "cgspn"
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for name, label, style in (
        ("SDPA Flash", "attention core, FlashAttention-2", "s-"),
        ("SDPA cuDNN", "attention core, cuDNN", "s-"),
        ("GSPN", "GSPN as published, four directions", "^-"),
    ):
        axes.plot(*times(name), style, label=label, markersize=4)
    axes.plot(sides, [ours_ms(row) for row in rows], "o-", label="line_scan, four directions", color="black")
    copies = [row["times"]["copy"]["median"] for row in rows]
    axes.plot(sides, copies, ":", color="gray", label="ideal floor (a copy of as many bytes)")
    schedule = [t * row["schedule_tensors"] / row["tensors"] for t, row in zip(copies, rows, strict=True)]
    axes.plot(sides, schedule, "--", color="gray", label="schedule floor")
    axes.set(xscale="log", yscale="log", xlabel="image side at patch 14, pixels", ylabel="forward, ms")
    axes.set_xticks(sides, [str(side) for side in sides], minor=False)
    axes.minorticks_off()
    facts = record["environment"]
    axes.set_title(f"batch 32, bf16, {facts['machine']}, torch {facts['torch']}, {facts['date']}", fontsize=9)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})
