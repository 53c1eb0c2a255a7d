"""Times the line scan against a copy of as many bytes, the eager reference, attention and GSPN, in one run.

    python tools/bench_ops.py --device cuda --record tools/benchmarks
    python tools/bench_ops.py --device cpu --threads 2
    python tools/bench_ops.py --show tools/benchmarks/RECORD.json --plot docs/speed.svg

What is timed is declared in opbench/table.py, against what in opbench/contestants.py. Speed-ups are withheld,
and the exit code is 1, when the operator's own tests fail or another process uses the GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from opbench import gates, record
from opbench.plot import draw
from opbench.table import DTYPES, LAYOUTS, PASSES, TABLE, Case


def choose(args: argparse.Namespace) -> list[tuple[Case, str]]:
    """The rows of the table that the flags leave, or the shape they give."""
    cases: Sequence[Case] = TABLE[args.device]
    if args.shape:
        dtypes, layouts = args.dtypes or ["bf16"], args.layouts or ["view"]
        cases = [Case(tuple(s), d, lo) for s in args.shape for d in dtypes for lo in layouts]
    rows = [
        (case, phase)
        for case in cases
        for phase in case.passes
        if phase in args.passes
        and case.dtype in (args.dtypes or DTYPES)
        and case.layout in (args.layouts or LAYOUTS)
    ]
    return rows


def measure(args: argparse.Namespace) -> record.Record:
    """Asks the gates, then times every chosen row."""
    withheld = gates.gpu_in_use() if args.device == "cuda" else ""
    withheld = withheld or gates.failing_tests(args.device)
    # Imported late: the GPU must still be idle when the gate looks at it.
    import torch

    from cgspn.ops import library
    from opbench import runner

    status = library.STATUS[args.device]
    if not status.active:
        sys.exit(f"bench_ops.py: no native {args.device} kernels: {status.reason}")
    if args.threads:
        torch.set_num_threads(args.threads)
    result: record.Record = {
        "environment": record.environment(args.device, args.budget),
        "withheld": withheld,
        "rows": [],
    }
    for case, phase in choose(args):
        try:
            row = runner.run(case, phase, args.device, args.budget, not args.no_reference)
        except torch.cuda.OutOfMemoryError:
            print(f"left out, memory is short: {phase} {case.shape} {case.dtype}", flush=True)
            continue
        result["rows"].append(row)
        print(record.progress(row, withheld), flush=True)
        if args.json:
            args.json.write_text(json.dumps(result, indent=1))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=list(TABLE), default="cpu")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS)
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=list(PASSES))
    parser.add_argument("--shape", type=int, nargs=4, action="append", metavar=("B", "C", "H", "W"))
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds per contestant")
    parser.add_argument("--no-reference", action="store_true", help="leave the eager reference out")
    parser.add_argument("--base", type=Path, help="an earlier record to compare with")
    parser.add_argument("--show", type=Path, help="a record to print or plot, instead of measuring")
    parser.add_argument("--json", type=Path, help="file for the record, written as it grows")
    parser.add_argument(
        "--record", type=Path, help="folder for the record and its table, named by what they hold"
    )
    parser.add_argument("--insert", type=Path, help="page with marks to write a short table into")
    parser.add_argument("--plot", type=Path, help="SVG of time against size")
    args = parser.parse_args()
    result = json.loads(args.show.read_text()) if args.show else measure(args)
    table = record.markdown(result, json.loads(args.base.read_text()) if args.base else None)
    print(table)
    if args.record:
        args.record.mkdir(parents=True, exist_ok=True)
        path = args.record / record.name(result)
        path.with_name(path.name + ".json").write_text(json.dumps(result, indent=1) + "\n")
        path.with_name(path.name + ".md").write_text(table)
    if args.insert:
        record.insert(result, args.insert)
    if args.plot:
        draw(result, args.plot)
    sys.exit(bool(result["withheld"]))


if __name__ == "__main__":
    main()
