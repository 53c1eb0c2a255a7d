"""SIGINT and SIGTERM leave a checkpoint from which training goes on as if nothing had happened."""

import signal
from pathlib import Path

import pytest
import torch


def checkpoint(folder):
    return torch.load(Path(folder, "checkpoints/last.ckpt"), weights_only=True)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signal_during_fit(shell, cgspn, name):
    result = shell(
        "fit", "-c", "base.yaml", f"--model.kill={name}", "--data.num_workers=1", "--run.name=stopped"
    )
    number = getattr(signal, name)
    assert result.code == 128 + number, result.err
    path = "runs/stopped/0/checkpoints/last.ckpt"
    assert result.err.splitlines()[-1] == (
        f"cgspn: stopped by {name} at step 3; "
        f"resume with: cgspn fit -c runs/stopped/0/config.yaml --ckpt_path {path}"
    )
    assert result.err.count("saving after this step") == 1
    assert "Traceback" not in result.err
    assert checkpoint("runs/stopped/0")["global_step"] == 3

    assert (
        cgspn("fit", "-c", "runs/stopped/0/config.yaml", "--ckpt_path", path, "--model.kill=null").code == 0
    )
    assert cgspn("fit", "-c", "base.yaml", "--run.name=whole").code == 0
    whole, resumed = checkpoint("runs/whole/0"), checkpoint("runs/stopped/1")
    assert resumed["global_step"] == whole["global_step"] == 4
