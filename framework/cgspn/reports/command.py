"""``cgspn report``: several runs side by side, as Markdown and as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="[LABEL=]RUN",
        help="run folder, as a rule that of a segmentation run; what its encoder's training left is found "
        "through init_from",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for report.md, report.html, figures/")
    parser.add_argument(
        "--latency",
        nargs="*",
        type=int,
        metavar="SIZE",
        help="picture sizes in pixels to time the encoders at; none: do not time; "
        "default: the first encoder's size and four times that",
    )


def run(args: argparse.Namespace) -> int:
    """Writes the report and prints its path."""
    if bad := [size for size in args.latency or [] if size < 1]:
        raise ValueError(f"--latency {bad[0]} is no picture size; sizes are pixels, at least 1.")
    from cgspn.reports.report import write_report

    path = write_report(args.runs, args.out, args.latency)
    print(path)
    return 0
