"""Records: what was measured on what, as JSON and as Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PRECISION = "bf16"


def default_path(folder: Path, facts: dict[str, Any]) -> Path:
    """Named by card, precision, torch, CUDA and date."""
    words = [
        "encoder",
        facts["machine"],
        PRECISION,
        f"torch{facts['torch']}",
        f"cuda{facts['cuda']}",
        facts["date"],
    ]
    return folder / (
        "_".join(str(word).lower().replace(" ", "-").replace("+", "-") for word in words) + ".json"
    )


def markdown(record: dict[str, Any]) -> str:
    """All parts of a record as tables."""
    lines = [", ".join(f"{key}: {value}" for key, value in record["environment"].items()), ""]
    for part, content in record["parts"].items():
        columns = list(dict.fromkeys(key for row in content["rows"] for key in row))
        lines += [f"## {part}", "", f"`{content['command']}`", ""]
        lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        lines += ["| " + " | ".join(cell(row.get(key)) for key in columns) + " |" for row in content["rows"]]
        lines.append("")
    return "\n".join(lines)


def cell(value: Any) -> str:
    """A value with three or four digits."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
