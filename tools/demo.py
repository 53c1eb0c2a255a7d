"""The demo: draws scenes, trains a teacher on their captions, distils a C-GSPN student, reports.

Every step is a ``cgspn`` command, printed as it runs. ``make demo`` runs it once; ``--seeds 0 1 2 --check``
repeats it and holds the medians against the demo's gates.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CGSPN = Path(sys.executable).parent / "cgspn"
CONFIGS = Path("configs/demo")
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]

# Median over seeds; figures are mIoU of linear probes on frozen features.
TEACHER_OVER_UNTRAINED = 2.0
STUDENT_SHARE_OF_GAIN = 0.8


class Step(NamedTuple):
    """A part of the demo: its title, planned minutes, the commands' arguments and how many run at once."""

    title: str
    minutes: float
    commands: list[list[str]]
    at_once: int = 1


def probe(root: Path, seed: int, name: str, encoder: str, init_from: Path | None) -> list[str]:
    """A linear probe on the frozen features of one encoder."""
    command = ["fit", "-c", f"{CONFIGS}/probe.yaml", "--run.root", str(root), "--run.name", f"probe_{name}"]
    command += ["--seed_everything", str(seed), "--model.encoder.type", encoder]
    if encoder != "raw_patches":
        command += ["--model.encoder.head", "avg"]
    if init_from is not None:
        command += ["--model.init_from.path", str(init_from), "--model.init_from.part", "encoder"]
    return command


def plan(root: Path, data: Path, seed: int) -> list[Step]:
    """The demo's steps for one seed, with all runs below ``root``."""
    stages = {
        name: root / name / "latest" / "checkpoints" / "last.ckpt" for name in ("teacher", "stage1", "stage2")
    }

    def fit(name: str, *more: str) -> list[str]:
        where = ["--run.root", str(root), "--run.name", name, "--seed_everything", str(seed)]
        return ["fit", "-c", f"{CONFIGS}/{name}.yaml", *where, *more]

    teacher = ["--model.teacher.weights", str(stages["teacher"])]
    rows = {
        "teacher": ("teacher", stages["teacher"], "vit_demo_patch8"),
        "student, stage 2": ("stage2", stages["stage2"], "cgspn_demo_patch8"),
        "student, stage 1": ("stage1", stages["stage1"], "cgspn_demo_patch8"),
        "untrained student": ("untrained", None, "cgspn_demo_patch8"),
        "raw patches": ("raw_patches", None, "raw_patches"),
    }
    report = [f"{label}={root}/probe_{name}/latest" for label, (name, _, _) in rows.items()]
    return [
        Step(
            "draw the scenes",
            0.5,
            [
                [
                    "scenes",
                    str(data / "pairs"),
                    "--format",
                    "shards",
                    "--num",
                    "3072",
                    "--size",
                    "64",
                    "--seed",
                    "0",
                ],
                [
                    "scenes",
                    str(data / "ade20k"),
                    "--format",
                    "ade20k",
                    "--num",
                    "512",
                    "--size",
                    "64",
                    "--seed",
                    "1",
                ],
            ],
        ),
        Step("train the teacher on captions", 2, [fit("teacher")]),
        Step("stage 1: feature distillation", 0.7, [fit("stage1", *teacher)]),
        Step(
            "stage 2: contrastive training with taps",
            1.4,
            [fit("stage2", *teacher, "--model.init_from.path", str(stages["stage1"]))],
        ),
        Step(
            "linear probes",
            1,
            [probe(root, seed, name, encoder, path) for name, path, encoder in rows.values()],
            at_once=2,
        ),
        Step("report", 0.3, [["report", *report, "--out", str(root / "report")]]),
    ]


def run(steps: list[Step]) -> None:
    """Runs the commands one after the other and prints each step's planned and used time."""
    print(
        "Time table (minutes on 2 cores): " + ", ".join(f"{s.title} {s.minutes:g}" for s in steps), flush=True
    )
    begin = time.monotonic()
    for number, step in enumerate(steps, 1):
        print(f"\n== {number}/{len(steps)} {step.title} (about {step.minutes:g} min)", flush=True)
        start = time.monotonic()
        for first in range(0, len(step.commands), step.at_once):
            start_and_wait(step.commands[first : first + step.at_once])
        print(f"== {step.title}: {(time.monotonic() - start) / 60:.1f} min", flush=True)
    print(f"\n== demo: {(time.monotonic() - begin) / 60:.1f} min", flush=True)


def start_and_wait(commands: list[list[str]]) -> None:
    """Runs a few commands at once; several share the cores, a thread each, and draw no progress bars.

    Raises:
        subprocess.CalledProcessError: If one of them fails; the others are waited for first.
    """
    several = len(commands) > 1
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if several else {})
    processes = []
    for command in commands:
        command = [*command, *QUIET] if several else command
        print(f"$ cgspn {shlex.join(command)}", flush=True)
        processes.append(subprocess.Popen([str(CGSPN), *command], cwd=ROOT, env=environment))
    for process in processes:
        process.wait()
    for process in processes:
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)


def mean_iou(root: Path, name: str) -> float:
    """Reads the mIoU, in percent, of a probe's run."""
    metrics = json.loads((ROOT / root / f"probe_{name}" / "latest" / "metrics.json").read_text())
    return float(metrics["val/mIoU"])


def check(roots: list[Path]) -> bool:
    """Prints every seed's figures and their medians, and whether the gates hold."""
    ratios, shares = [], []
    for root in roots:
        teacher, student, untrained = (mean_iou(root, name) for name in ("teacher", "stage2", "untrained"))
        ratios.append(teacher / untrained)
        shares.append((student - untrained) / (teacher - untrained))
        print(
            f"{root}: teacher {teacher:.1f}, student {student:.1f}, untrained {untrained:.1f} mIoU; "
            f"teacher / untrained {ratios[-1]:.2f}, student's share of the gain {shares[-1]:.2f}"
        )
    ratio, share = statistics.median(ratios), statistics.median(shares)
    passed = ratio >= TEACHER_OVER_UNTRAINED and share >= STUDENT_SHARE_OF_GAIN
    print(f"median teacher / untrained: {ratio:.2f} (gate: at least {TEACHER_OVER_UNTRAINED})")
    print(f"median share of the gain: {share:.2f} (gate: at least {STUDENT_SHARE_OF_GAIN})")
    print("gates hold" if passed else "gates FAIL")
    return passed


def main() -> int:
    """Runs the demo and returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one demo per seed")
    parser.add_argument("--check", action="store_true", help="fail if the medians miss the gates")
    arguments = parser.parse_args()
    data = Path("runs/demo/data")
    roots = [
        Path("runs/demo") if len(arguments.seeds) == 1 else Path(f"runs/demo/seed{s}")
        for s in arguments.seeds
    ]
    for root, seed in zip(roots, arguments.seeds, strict=True):
        try:
            run(plan(root, data, seed))
        except subprocess.CalledProcessError as error:
            print(f"demo: the command above failed with exit code {error.returncode}", file=sys.stderr)
            return 1
    passed = check(roots) if arguments.check else True
    root = roots[-1]
    probe_run = f"{root}/probe_stage2/latest"
    print(f"\nReport:      {root}/report/report.html")
    print(f"Run folders: {root}/{{teacher,stage1,stage2,probe_*}}/<n>")
    print("Next:")
    print("  source .venv/bin/activate")
    print(
        f"  cgspn predict -c {probe_run}/config.yaml --ckpt_path {probe_run}/checkpoints/last.ckpt "
        "--data.images FOLDER_WITH_YOUR_PICTURES"
    )
    print(
        f"  cgspn fit -c {CONFIGS}/stage1.yaml --model.student.operator.type gspn2 "
        f"--model.teacher.weights {root}/teacher/latest/checkpoints/last.ckpt"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
