"""Run folders and what is in them."""

import csv
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml

from cgspn.cli.command_line import name_of_config, resolve_latest
from cgspn.cli.runs import RunConfig, new_run_folder


def weights(folder):
    return torch.load(Path(folder, "checkpoints/last.ckpt"), weights_only=True)["state_dict"]


def assert_same_weights(one, other):
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(other)[name], tensor, rtol=0, atol=0)


def test_fit_fills_its_folder(cgspn):
    result = cgspn("fit", "-c", "base.yaml", "--checkpoint.monitor=val/loss")
    assert result.code == 0
    assert result.out.splitlines()[0] == result.out.splitlines()[-1] == "run folder: runs/base/0"
    folder = Path("runs/base/0")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["run"] == {"name": "base", "root": "runs"}
    assert config["seed_everything"] == 0
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert list(folder.glob("events.out.tfevents.*"))
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [row["train/loss"] != "" for row in rows].count(True) == 4
    assert json.loads((folder / "metrics.json").read_text()).keys() == {"train/loss", "val/loss"}
    assert Path("runs/base/latest").resolve() == folder.resolve()


def test_fit_begins_with_a_summary_of_the_model(cgspn):
    result = cgspn("fit", "-c", "base.yaml", "--trainer.enable_model_summary=true", "--trainer.max_steps=1")
    assert result.code == 0, result.err
    [row] = [line for line in result.out.splitlines() if " encoder " in line]
    assert " VisionEncoder " in row
    [sums] = [line for line in result.out.splitlines() if "parameters, of which" in line]
    total, trained = (int(word.replace(",", "")) for word in sums.split() if word[0].isdigit())
    assert total == trained > 1000
    assert "FLOPs" not in result.out
    assert "summary callbacks" not in result.err


def test_checkpoint_is_plain_data(cgspn):
    cgspn("fit", "-c", "base.yaml")
    checkpoint = torch.load("runs/base/0/checkpoints/last.ckpt", weights_only=True)
    hyperparameters = checkpoint["hyper_parameters"]
    assert hyperparameters["_class_path"] == "tiny.TinyModule"
    assert hyperparameters["encoder"]["operator"] == {"type": "attention", "qkv_bias": False}
    assert hyperparameters["weights"] == {"near": 1.0, "far": 0.5}

    from tiny import TinyModule

    module = TinyModule.load_from_checkpoint("runs/base/0/checkpoints/last.ckpt", weights_only=True)
    assert module.encoder.embed_dim == 16


def test_second_run_gets_its_own_folder_and_reproduces_the_first(cgspn):
    cgspn("fit", "-c", "base.yaml")
    before = {p: p.stat().st_mtime_ns for p in Path("runs/base/0").rglob("*")}
    assert cgspn("fit", "-c", "runs/base/0/config.yaml").out.startswith("run folder: runs/base/1\n")
    assert before == {p: p.stat().st_mtime_ns for p in Path("runs/base/0").rglob("*")}
    assert_same_weights("runs/base/0", "runs/base/1")
    first, second = (yaml.safe_load(Path(f"runs/base/{n}/config.yaml").read_text()) for n in (0, 1))
    assert first == second


def test_resumed_training_equals_uninterrupted_training(cgspn):
    cgspn("fit", "-c", "base.yaml", "--trainer.max_epochs=2", "--run.name=whole")
    cgspn("fit", "-c", "base.yaml", "--run.name=half")
    checkpoint = "runs/half/latest/checkpoints/last.ckpt"
    result = cgspn(
        "fit", "-c", "runs/half/0/config.yaml", "--ckpt_path", checkpoint, "--trainer.max_epochs=2"
    )
    assert result.code == 0
    assert_same_weights("runs/whole/0", "runs/half/1")
    saved = yaml.safe_load(Path("runs/half/1/config.yaml").read_text())
    assert saved["ckpt_path"] == "runs/half/0/checkpoints/last.ckpt"


def test_evaluation_has_its_own_folder_and_leaves_latest_alone(cgspn):
    cgspn("fit", "-c", "base.yaml")
    for number, command in enumerate(["validate", "test"], start=1):
        checkpoint = "--ckpt_path=runs/base/latest/checkpoints/last.ckpt"
        assert cgspn(command, "-c", "runs/base/latest/config.yaml", checkpoint).code == 0
        metrics = json.loads(Path(f"runs/base/{number}/metrics.json").read_text())
        assert metrics.keys() == {f"{'val' if command == 'validate' else 'test'}/loss"}
        assert Path(f"runs/base/latest-{command}").readlink() == Path(str(number))
    assert cgspn("predict", "-c", "runs/base/0/config.yaml", checkpoint).code == 0
    assert Path("runs/base/latest").readlink() == Path("0")


def test_evaluation_without_checkpoint_says_so(cgspn):
    with pytest.warns(UserWarning, match="the model is evaluated as it was initialised"):
        assert cgspn("test", "-c", "base.yaml").code == 0


def test_warnings_of_lightning_are_plain_too(shell):
    lines = shell("fit", "-c", "base.yaml", "--trainer.log_every_n_steps=50").err.splitlines()
    assert any(line.startswith("warning: The number of training batches (4) is smaller") for line in lines)


def test_periodic_checkpoint_survives_a_hard_kill(shell, cgspn):
    assert shell("fit", "-c", "base.yaml", "--checkpoint.every_n_steps=1", "--model.kill=SIGKILL").code == -9
    checkpoint = "runs/base/0/checkpoints/last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 2
    assert (
        cgspn("fit", "-c", "runs/base/0/config.yaml", "--ckpt_path", checkpoint, "--model.kill=null").code
        == 0
    )
    assert torch.load("runs/base/1/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


def test_failed_start_leaves_no_folder(cgspn):
    assert cgspn("fit", "-c", "base.yaml", "--trainer.strategy=none_such").code == 2
    assert not list(Path("runs").rglob("*/0"))


def test_names(cgspn, config):
    base = yaml.safe_load(Path("base.yaml").read_text())
    config("configs/stage1/small.yaml", base)
    assert cgspn("fit", "-c", "configs/stage1/small.yaml", "--trainer.fast_dev_run=1").out.startswith(
        "run folder: runs/stage1/small/0\n"
    )
    result = cgspn(
        "fit", "-c", "base.yaml", "--run.name=a/b", "--run.root=elsewhere", "--trainer.fast_dev_run=1"
    )
    assert result.out.startswith("run folder: elsewhere/a/b/0\n")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("configs/demo/stage1.yaml", "demo/stage1"),
        ("/somewhere/configs/demo/stage1.yaml", "demo/stage1"),
        ("mine.yaml", "mine"),
        ("../other/mine.yml", "mine"),
    ],
)
def test_name_of_config(path, name):
    assert name_of_config(Path(path)) == name


def test_latest_is_resolved_in_paths(tmp_path):
    (tmp_path / "runs/x/3").mkdir(parents=True)
    (tmp_path / "runs/x/latest").symlink_to("3")
    assert resolve_latest({"path": ["runs/x/latest/last.ckpt"]}) == {"path": ["runs/x/3/last.ckpt"]}
    assert resolve_latest("runs/y/latest/last.ckpt") == "runs/y/latest/last.ckpt"
    assert resolve_latest("the latest") == "the latest"


def test_folders_made_at_the_same_moment_differ(tmp_path):
    run = RunConfig(name="same", root=str(tmp_path))
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(lambda _: new_run_folder(run), range(64)))
    assert len(set(folders)) == 64


@pytest.mark.slow
def test_two_ranks_share_one_folder(shell):
    result = shell("fit", "-c", "base.yaml", "--trainer.strategy=ddp", "--trainer.devices=2")
    assert result.code == 0, result.err
    assert [p.name for p in Path("runs/base").iterdir() if not p.is_symlink()] == ["0"]
    assert (Path("runs/base/0") / "checkpoints/last.ckpt").exists()


def test_full_disk():
    """A limit on the size of files stands for a disk that is full."""
    command = f"ulimit -f 16; exec {sys.executable} -m cgspn.cli fit -c base.yaml"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert re.match(r"cgspn: error: The checkpoint of step \d+ cannot be written to runs/base/0", line), line
    assert line.endswith("File too large; nothing was saved.")
    assert "Traceback" not in done.stderr
    assert not list(Path("runs/base/0/checkpoints").glob("*"))


def test_run_folder_that_cannot_be_made(shell):
    Path("file").touch()
    result = shell("fit", "-c", "base.yaml", "--run.root=file")
    assert result.code == 2
    assert result.err.splitlines()[-1] == "cgspn: error: Not a directory: file/base"
