"""Images per second and memory of a picture against the resolution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LABELS = {"vit": "ViT", "hybrid": "hybrid 3/27", "cgspn": "C-GSPN"}
PANELS = {"images/s": "images per second", "MiB a picture": "MiB a picture"}


def draw(record: dict[str, Any], target: Path) -> None:
    """One panel a quantity, one line a model, both axes logarithmic.

    Raises:
        ValueError: If the record lacks the part ``encoder``.
    """
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    if "encoder" not in record["parts"]:
        raise ValueError(f"the record has no part encoder, only {', '.join(record['parts'])}.")
    rows = record["parts"]["encoder"]["rows"]
    plt.rcParams["svg.hashsalt"] = "cgspn"
    figure, axes = plt.subplots(1, len(PANELS), figsize=(9, 3.4), layout="constrained")
    for axis, (column, title) in zip(axes, PANELS.items(), strict=True):
        for model, label in LABELS.items():
            points = [(row["pixels"], row[column]) for row in rows if row["model"] == model]
            if points:
                axis.loglog(*zip(*sorted(points), strict=True), marker="o", label=label)
        sides = sorted({row["pixels"] for row in rows})
        axis.set_xticks(sides, [str(side) for side in sides])
        axis.minorticks_off()
        axis.set_xlabel("side of the picture in pixels")
        axis.set_title(title)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(f"SO400M/14, bfloat16, {record['environment']['machine']}")
    figure.savefig(target, metadata={"Date": None})
