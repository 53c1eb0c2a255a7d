"""A package found through the entry-point group ``cgspn.plugins`` adds entries that configs can name."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cgspn.registry import BACKBONES

PACKAGE = Path(__file__).parents[1] / "plugin_package"
TEACHER = {
    "type": "vision_encoder",
    "img_size": 16,
    "patch_size": 8,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "mlp_dim": 32,
}
TRAINER = {
    "accelerator": "cpu",
    "max_steps": 3,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder into which pip has installed the package, with a second entry point that is broken."""
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(PACKAGE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    text = (source / "pyproject.toml").read_text()
    assert 'pooling = "cgspn_pooling"\n' in text
    broken = 'pooling = "cgspn_pooling"\nbroken = "no_such_module"\n'
    (source / "pyproject.toml").write_text(text.replace('pooling = "cgspn_pooling"\n', broken))
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", folder / "site"]
    subprocess.run([sys.executable, "-m", "pip", "install", *map(str, options), str(source)], check=True)
    return folder / "site"


@pytest.fixture
def installed(site, monkeypatch):
    """Puts the installed package on the path of child processes."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ["PYTHONPATH"]]))


@pytest.fixture
def stage1(config):
    """Name of a config of stage 1 with a teacher's checkpoint and a few pictures; no word of the plugin."""
    encoder = BACKBONES.build(TEACHER)
    state = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {"encoder": TEACHER}}, "teacher.ckpt")
    Path("pictures").mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(f"pictures/{i}.png")
    model = {"teacher": {"type": "cgspn", "weights": "teacher.ckpt"}, "lr": 0.01}
    data = {"train": "pictures", "image_size": 16, "batch_size": 2, "num_workers": 0}
    return config(
        "stage1.yaml",
        {
            "trainer": TRAINER,
            "model": {"class_path": "Stage1Distillation", "init_args": model},
            "data": {"class_path": "ImageFolderDataModule", "init_args": data},
        },
    )


def test_an_installed_operator_goes_through_stage_1(installed, stage1, config, shell):
    student = TEACHER | {"operator": {"type": "pooling", "size": 5}}
    plugin = config("plugin.yaml", {"model": {"init_args": {"student": student}}})
    result = shell("fit", "-c", stage1, "-c", plugin)
    assert result.code == 0, result.err
    run = Path("runs/stage1/0")
    saved = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["student"]
    assert saved["operator"] == {"type": "pooling", "size": 5}
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    weights = [checkpoint["state_dict"][f"encoder.blocks.{i}.operator.project.weight"] for i in range(2)]
    assert all(weight.abs().max() > 0.001 for weight in weights), "it starts at zero"
    # The other entry point of the package is broken: one line that names it, and no harm.
    [warning] = [line for line in result.err.splitlines() if "broken" in line]
    assert warning.startswith("warning: Plugin 'broken' was not loaded: ModuleNotFoundError")


def test_its_arguments_are_checked_like_any_others(installed, config, shell):
    for argument, message in {
        "sise": "student.yaml.operator: Unknown argument of pooling 'sise'; did you mean 'size'? "
        "Valid: dim, size.",
        "size": "size=4 must be odd.",
    }.items():
        result = shell(
            "info", config("student.yaml", TEACHER | {"operator": {"type": "pooling", argument: 4}})
        )
        assert result.code == 2, result.err
        assert result.err.splitlines()[-1] == f"cgspn: error: {message}"
        assert "Traceback" not in result.err


def test_it_is_listed(installed, shell):
    result = shell("list", "operators")
    assert result.code == 0, result.err
    [row] = [line for line in result.out.splitlines() if line.split()[0] == "pooling"]
    assert "Average of a neighbourhood minus its centre" in row


def test_a_bug_report_names_it(installed):
    done = subprocess.run([sys.executable, "-m", "cgspn.env"], capture_output=True, text=True, check=True)
    facts = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    assert facts["plugin pooling"].strip() == "cgspn_pooling (cgspn-pooling 1.0)"
    assert facts["torch"].strip().startswith(torch.__version__)
    assert facts["native cpu kernels"].strip().startswith(("active (", "not active: "))
