"""SIGINT and SIGTERM leave a checkpoint from which training goes on as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time
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


def test_ctrl_c_while_drawing_scenes():
    """As in a terminal: the signal goes to the command and to its workers."""
    command = [sys.executable, "-m", "cgspn.cli", "scenes", "scenes", "--num", "20000", "--size", "64"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while not list(Path().glob(".scenes.*/images/training/*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "cgspn: interrupted.\n"
    assert not list(Path().glob("*scenes*"))
