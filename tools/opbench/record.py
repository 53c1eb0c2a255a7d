"""Records: what was measured on what, as JSON and as Markdown, and how one compares with an earlier one."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

Record = dict[str, Any]
Row = dict[str, Any]

MARKS = ("<!-- figures -->", "<!-- end of figures -->")
KEY = ("shape", "dtype", "layout", "variant", "pass")
ROOT = Path(__file__).resolve().parents[2]


def environment(device: str, budget_s: float) -> dict[str, object]:
    """What the figures were taken with."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    facts: dict[str, object] = {
        "machine": torch.cuda.get_device_name() if device == "cuda" else _cpu_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "date": datetime.date.today().isoformat(),
        "commit": commit or None,
        "seconds a contestant": budget_s,
    }
    if device == "cpu":
        facts |= {
            "threads": torch.get_num_threads(),
            "SIMD": torch.backends.cpu.get_cpu_capability(),
            "cores": len(os.sched_getaffinity(0)),
        }
    else:
        facts["driver"] = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"],
            capture_output=True,
            text=True,
        ).stdout.strip()
    return facts


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def name(record: Record) -> str:
    """File name without its ending: card, precisions, torch, CUDA, date."""
    facts = record["environment"]
    dtypes = "+".join(sorted({row["dtype"] for row in record["rows"]}))
    cuda = f"-cu{facts['cuda'].replace('.', '')}" if facts["cuda"] else ""
    torch_version = facts["torch"].split("+")[0].replace(".", "")
    machine = "-".join(facts["machine"].lower().replace("(r)", "").replace("(tm)", "").split()[:4])
    return f"line_scan-{machine}-{dtypes}-pt{torch_version}{cuda}-{facts['date']}"


def ours_ms(row: Row) -> float:
    """Milliseconds of the operator."""
    return row["times"]["cgspn"][row["statistic"]]


def speed_ups(row: Row) -> dict[str, float]:
    """How many times faster the operator is than each rival; the published scan's recorded time is added."""
    factors = {}
    for rival, times in row["times"].items():
        if rival in ("cgspn", "copy"):
            continue
        total = times[row["statistic"]] + (row["gspn_scan_ms"] if rival == "GSPN" else 0)
        factors[rival] = total / ours_ms(row)
    return factors


def markdown(record: Record, base: Record | None = None) -> str:
    """The record as a table, with the reason where speed-ups are withheld."""
    facts = record["environment"]
    lines = [", ".join(f"{key}: {value}" for key, value in facts.items() if value is not None), ""]
    withheld = record["withheld"]
    if withheld:
        lines += [f"**No speed-ups and shares: {withheld}.**", ""]
    rivals = [
        c
        for c in ("reference", "SDPA cuDNN", "SDPA Flash", "GSPN")
        if any(c in r["times"] for r in record["rows"])
    ]
    columns = ["pass", "(B, C, H, W)", "dtype", "layout", "variant", "ms (p20-p80)", "GB/s", "copy GB/s"]
    columns += ["ideal", "schedule", "peak MiB", "host us", *(f"x {rival}" for rival in rivals)]
    columns += ["x base"] if base else []
    lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    earlier = {key(row): row for row in base["rows"]} if base else {}
    for row in record["rows"]:
        lines.append("| " + " | ".join(_cells(row, rivals, withheld, base, earlier)) + " |")
    notes = [
        "`ideal` and `schedule`: a copy of the floor's bytes over the operator's time, same run.",
        "`x` columns: the rival's time over the operator's.",
    ]
    if "GSPN" in rivals:
        notes.append(
            "`GSPN`: the published kernel's time is a record (one direction, taken four times); "
            "sigmoid normalisation, transposes, flips, gates and sum around it were timed in this run."
        )
    if any(rival.startswith("SDPA") for rival in rivals):
        notes.append("`SDPA`: the attention core alone over as many tokens, width 1152, 16 heads.")
    if base and base["environment"]["machine"] != facts["machine"]:
        notes.append(f"`x base` compares different machines: the base is {base['environment']['machine']}.")
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]) + "\n"


def progress(row: Row, withheld: str) -> str:
    """One line about a row as soon as it is there."""
    shares = "" if withheld else f"{row['share_of_ideal']:.0%} of the copy's speed"
    factors = {} if withheld else speed_ups(row)
    rivals = ", ".join(f"{factor:.1f} x {rival}" for rival, factor in factors.items())
    what = f"{row['pass']:8s} {tuple(row['shape'])} {row['dtype']} {row['layout']} {row['variant']}"
    peak = f", peak {row['peak_over_alive']:+.1%}" if "peak_over_alive" in row else ""
    return f"{what}: {ours_ms(row):.4g} ms {shares} {rivals}{peak}"


def key(row: Row) -> tuple[Any, ...]:
    """What makes two rows of different records comparable."""
    return tuple(tuple(row[name]) if name == "shape" else row[name] for name in KEY)


def insert(record: Record, path: Path) -> None:
    """Replaces what stands between the marks in a page by the record's shares.

    Raises:
        ValueError: If the record withholds its comparisons or the page has no marks.
    """
    if record["withheld"]:
        raise ValueError(f"nothing is compared in this record: {record['withheld']}.")
    text = path.read_text()
    if MARKS[0] not in text or MARKS[1] not in text:
        raise ValueError(f"{path} has no lines {MARKS[0]} and {MARKS[1]}.")
    facts = record["environment"]
    lines = [
        f"{facts['machine']}, torch {facts['torch']}, {facts['date']}:",
        "",
        "| pass | (B, C, H, W) | dtype | layout | variant | ms | ideal | schedule |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        schedule = row.get("share_of_schedule")
        cells = [row["pass"], str(tuple(row["shape"])), row["dtype"], row["layout"], row["variant"]]
        cells += [f"{ours_ms(row):.3g}", f"{row['share_of_ideal']:.0%}"]
        cells += ["" if schedule is None else f"{schedule:.0%}"]
        lines.append("| " + " | ".join(cells) + " |")
    before, after = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
    path.write_text("\n".join([before + MARKS[0], *lines, MARKS[1] + after]))


def _cells(
    row: Row, rivals: list[str], withheld: str, base: Record | None, earlier: dict[tuple[Any, ...], Row]
) -> list[str]:
    ours = row["times"]["cgspn"]

    def figure(pattern: str, value: float | None) -> str:
        return "" if value is None else pattern.format(value)

    def claim(pattern: str, value: float | None) -> str:
        return "-" if withheld and value is not None else figure(pattern, value)

    cells = [
        row["pass"],
        str(tuple(row["shape"])),
        row["dtype"],
        row["layout"],
        row["variant"],
        f"{ours_ms(row):.4g} ({ours['p20']:.4g}-{ours['p80']:.4g})",
        f"{row['gb_per_s']:.0f}",
        f"{row['copy_gb_per_s']:.0f}",
        claim("{:.0%}", row["share_of_ideal"]),
        claim("{:.0%}", row.get("share_of_schedule")),
        figure("{:.0f}", row.get("peak_mib")),
        figure("{:.0f}", row.get("host_us")),
    ]
    factors = speed_ups(row)
    cells += [claim("{:.1f}", factors.get(rival)) for rival in rivals]
    if base:
        before = earlier.get(key(row))
        cells.append(claim("{:.2f}", None if before is None else ours_ms(before) / ours_ms(row)))
    return cells
