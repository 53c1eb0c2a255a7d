"""Times blocks and whole encoders, C-GSPN against its ViT twin, in one process on one GPU.

Parts run alone or together; every run adds its parts to the record, a JSON file with Markdown tables beside.

    python tools/bench_encoder.py --parts sublayer block --records tools/benchmarks
    python tools/bench_encoder.py --parts encoder --grids 74 147 --batch 64 --json out.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from cgspn.ops import library, token_linear
from cgspn.ops.choice import MODES
from cgspn.ops.latent_propagation import latent_backend
from encbench import plot
from encbench.parts import GRIDS, PARTS
from encbench.record import cell, default_path, markdown
from encbench.setting import Setting
from opbench.gates import gpu_in_use
from opbench.record import environment

ON_CPU = ("sublayer", "block")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = list(PARTS)
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument(
        "--size", default="so400m_patch14", help="size of the presets vit_SIZE and cgspn_SIZE"
    )
    parser.add_argument(
        "--models", nargs="+", choices=["vit", "cgspn", "hybrid"], default=["vit", "cgspn", "hybrid"]
    )
    parser.add_argument(
        "--grids", type=int, nargs="+", help="sides of the token grid; default: the part's own"
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--budget", type=float, default=0.5, help="seconds per figure")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--compile", action="store_true", help="time compiled blocks too")
    parser.add_argument("--token-linear", choices=MODES, default="auto", help="as CGSPN_TOKEN_LINEAR")
    parser.add_argument("--latent", choices=MODES, default="auto", help="as CGSPN_LATENT")
    parser.add_argument("--json", type=Path, help="the record, which may hold other parts already")
    parser.add_argument(
        "--records", type=Path, help="folder for a record named by card, precision and versions"
    )
    parser.add_argument("--plot", type=Path, help="draws the record's part encoder as SVG")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"there is no GPU; --device cpu times {' and '.join(ON_CPU)} only.")
    if args.device == "cpu" and (others := [part for part in args.parts if part not in ON_CPU]):
        parser.error(f"{others[0]} needs --device cuda; on a CPU: {', '.join(ON_CPU)}.")
    if not library.STATUS[args.device].active:
        parser.error(f"no native {args.device} kernels: {library.STATUS[args.device].reason}")
    facts = environment(args.device, args.budget)
    if args.device == "cuda" and (in_use := gpu_in_use()):
        facts["note"] = in_use
        print(f"note: {in_use}", flush=True)
    path = args.json or (default_path(args.records, facts) if args.records else None)
    record: dict[str, Any] = json.loads(path.read_text()) if path and path.is_file() else {"parts": {}}
    record["environment"] = facts
    for part in args.parts:
        grids = tuple(args.grids or GRIDS[part])
        setting = Setting(
            args.size, grids, args.batch, args.device, args.budget, tuple(args.models), args.compile
        )
        command = ["bench_encoder.py --parts", part, "--size", args.size, "--batch", args.batch]
        command += ["--budget", args.budget, "--grids", *grids, "--models", *args.models]
        command += ["--token-linear", args.token_linear, "--latent", args.latent]
        command += ["--compile"] * args.compile
        content = record["parts"].setdefault(part, {})
        content.update(command=" ".join(map(str, command)), rows=[])
        start = time.perf_counter()
        with token_linear.CHOICE.using(args.token_linear), latent_backend(args.latent):
            for row in PARTS[part](setting):
                content["rows"].append(row)
                print(part, ", ".join(f"{key} {cell(value)}" for key, value in row.items()), flush=True)
                if path:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(json.dumps(record, indent=1) + "\n")
                    path.with_suffix(".md").write_text(markdown(record))
        print(f"{part} took {time.perf_counter() - start:.0f} s", flush=True)
    if args.plot:
        plot.draw(record, args.plot)


if __name__ == "__main__":
    main()
