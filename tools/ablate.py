"""Ablations on the demo: the recipe once as it is and once with each of some config files laid over it.

``python tools/ablate.py configs/ablations/student/operator_gspn2.yaml ...`` needs what ``make demo`` left:
scenes and a teacher. Every variant is a stage 1, a stage 2 and a linear probe, each a ``cgspn`` command that
is printed as it runs, about 3 minutes on 2 cores; ``runs/ablations/report`` then puts them side by side.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import yaml

import demo

PARTS = ("student", "stage1", "stage2")
MINUTES = 3


def plan(files: list[Path], root: Path, teacher: Path, seed: int) -> list[demo.Step]:
    """The commands of every variant, the recipe as it is first.

    Args:
        files: Config files; the folder of each says what it is laid over: ``student`` (both stages and the
            probe's encoder), ``stage1`` or ``stage2``.
        root: Folder of all runs.
        teacher: Checkpoint of the teacher.
        seed: Seed of every run.

    Raises:
        ValueError: If a file is in another folder, or two have one name.
    """
    steps, rows = [], []
    for file in [None, *files]:
        name = "recipe" if file is None else file.stem
        part = None if file is None else file.parent.name
        if part not in (None, *PARTS):
            raise ValueError(f"{file} must lie in a folder called {', '.join(PARTS)}.")
        content = {} if file is None else yaml.safe_load(file.read_text())["model"]

        def fit(stage: str, *more: str, file: Path | None = file, part: str | None = part) -> list[str]:
            over = ["-c", str(file)] if file is not None and part in ("student", stage) else []
            given = ["--model.teacher.weights", str(teacher), "--seed_everything", str(seed)]
            return [
                "fit",
                "-c",
                f"{demo.CONFIGS}/{stage}.yaml",
                *over,
                *given,
                "--run.root",
                str(root),
                *more,
            ]

        commands = []
        first, second = root / name / "stage1", root / name / "stage2"
        start = ["--model.init_from.path", f"{first}/latest/checkpoints/last.ckpt"]
        if content.get("init_from", start) is None:
            start = []
        elif part == "stage2":  # Stage 1 is the recipe's own.
            start[1] = f"{root}/recipe/stage1/latest/checkpoints/last.ckpt"
        else:
            commands.append(fit("stage1", "--run.name", f"{name}/stage1"))
        commands.append(fit("stage2", *start, "--run.name", f"{name}/stage2"))
        weights = second / "latest" / "checkpoints" / "last.ckpt"
        encoder = json.dumps({"head": "avg"} | content.get("student", {}))
        commands.append(
            [
                *["fit", "-c", f"{demo.CONFIGS}/probe.yaml", "--model.encoder", encoder],
                *["--model.init_from.path", str(weights), "--model.init_from.part", "encoder"],
                *["--seed_everything", str(seed), "--run.root", str(root), "--run.name", f"{name}/probe"],
            ]
        )
        steps.append(demo.Step(name, MINUTES, commands))
        rows.append(f"{name}={root}/{name}/probe/latest")
    if twice := next((row for row in rows if rows.count(row) > 1), None):
        raise ValueError(f"Two files are called {twice.partition('=')[0]}.yaml.")
    report = ["report", *rows, "--out", str(root / "report")]
    return [*steps, demo.Step("report", 0.3, [report])]


def main() -> int:
    """Runs the ablations and returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="config files of the variants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", type=Path, default=Path("runs/ablations"), help="folder of all runs")
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="folder of the demo's runs")
    arguments = parser.parse_args()
    teacher = arguments.demo / "teacher" / "latest" / "checkpoints" / "last.ckpt"
    for path in (*arguments.files, teacher):
        if not (demo.ROOT / path).is_file():
            hint = "; run make demo first" if path == teacher else ""
            print(f"ablate: there is no file {path}{hint}.", file=sys.stderr)
            return 2
    try:
        demo.run(plan(arguments.files, arguments.root, teacher, arguments.seed))
    except ValueError as error:
        print(f"ablate: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"ablate: the command above failed with exit code {error.returncode}", file=sys.stderr)
        return 1
    print(f"\nReport: {arguments.root}/report/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
