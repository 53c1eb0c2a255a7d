"""The demo and its ablations are commands that the command line takes, in an order in which they can run."""

import importlib
import sys
from pathlib import Path

import pytest
import yaml

import cgspn.cli.trainer  # noqa: F401  (Lightning keeps the stderr of its import, which must outlive a test)
from cgspn.cli import main

ROOT = Path(__file__).parents[2]
ABLATIONS = sorted(ROOT.glob("configs/ablations/*/*.yaml"))


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    for name in ("demo", "ablate"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("demo"), importlib.import_module("ablate")


def printed_config(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--print_config"])
    assert not end.value.code
    return yaml.safe_load(capsys.readouterr().out)


def runs_of(steps):
    """Options of each command; what it reads of other runs must come from commands before it."""
    found = {}
    for arguments in [command for step in steps for command in step.commands]:
        options = dict(zip(arguments[1::2], arguments[2::2], strict=False))
        for path in (a.partition("=")[2] or a for a in arguments if "/latest" in a):
            assert path.split("/latest")[0] in found or "/teacher/" in path, path
        if arguments[0] == "fit":
            found[f"{options['--run.root']}/{options['--run.name']}"] = arguments
    return found


def test_the_demos_commands_are_valid(tools, capsys):
    demo, _ = tools
    runs = runs_of(demo.plan(Path("runs/demo"), Path("runs/demo/data"), 0))
    assert {Path(run).name for run in runs} >= {"teacher", "stage1", "stage2", "probe_raw_patches"}
    for arguments in runs.values():
        assert printed_config(arguments, capsys)["run"]["root"] == "runs/demo"


def test_every_ablation_is_planned(tools):
    _, ablate = tools
    steps = ablate.plan(ABLATIONS, Path("runs/a"), Path("runs/demo/teacher/latest/last.ckpt"), 0)
    runs = runs_of(steps)
    for file in ABLATIONS:
        stages = {"student": 2, "stage1": 2, "stage2": 1}[file.parent.name]
        made = [run for run in runs if run.startswith(f"runs/a/{file.stem}/")]
        assert len(made) == stages + 1, made
        assert any(str(file) in arguments for run, arguments in runs.items() if run in made)


def test_a_probe_reads_the_variants_encoder(tools, capsys):
    _, ablate = tools
    file = ROOT / "configs/ablations/student/operator_gspn2.yaml"
    probe = runs_of(ablate.plan([file], Path("runs/a"), Path("teacher.ckpt"), 0))[
        "runs/a/operator_gspn2/probe"
    ]
    encoder = printed_config(probe, capsys)["model"]["init_args"]["encoder"]
    assert encoder == {"type": "cgspn_demo_patch8", "head": {"type": "avg"}, "operator": {"type": "gspn2"}}


def test_mistakes_are_one_line(tools, capsys, monkeypatch, tmp_path):
    _, ablate = tools
    for files, message in (
        (["nowhere.yaml"], "there is no file nowhere.yaml."),
        ([str(ABLATIONS[0]), "--demo", str(tmp_path)], "run make demo first."),
    ):
        monkeypatch.setattr(sys, "argv", ["ablate", *files])
        assert ablate.main() == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.endswith(message)
