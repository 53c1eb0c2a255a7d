import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

import cgspn.cli.trainer  # Lightning keeps the stderr of its import, which must outlive a test.
from cgspn.cli import main

SUPPORT = Path(__file__).with_name("support")
FRAMEWORK = Path(main.__globals__["__file__"]).parents[2]
BASE = {
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    },
    "model": {
        "class_path": "tiny.TinyModule",
        "init_args": {
            "encoder": {
                "type": "vision_encoder",
                "img_size": 16,
                "patch_size": 8,
                "embed_dim": 16,
                "depth": 1,
                "num_heads": 2,
                "operator": {"type": "attention", "qkv_bias": False},
            }
        },
    },
    "data": {"class_path": "tiny.TinyData"},
}


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def config(self):
        """What --print_config printed."""
        assert self.code == 0, self
        return yaml.safe_load(self.out)

    @property
    def error(self):
        """The single line on stderr, without the program's name."""
        assert self.code == 2, self
        lines = [line for line in self.err.splitlines() if "Seed set to" not in line]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("cgspn: error: ")
        return lines[0].removeprefix("cgspn: error: ")


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty current folder from which the tiny module can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(SUPPORT))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SUPPORT), str(FRAMEWORK)]))
    monkeypatch.delenv("CGSPN_TRACEBACK", raising=False)
    write("base.yaml", BASE)


def write(name, content):
    """Writes a YAML file into the current folder and returns its name."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(yaml.safe_dump(content))
    return name


@pytest.fixture
def config():
    return write


@pytest.fixture
def cgspn(capfd):
    """Runs the command line in this process."""

    def run(*arguments):
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit:
            code = exit.code or 0
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def shell():
    """Runs the command line in a process of its own."""

    def run(*arguments, timeout=120):
        done = subprocess.run(
            [sys.executable, "-m", "cgspn.cli", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
            start_new_session=True,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run
