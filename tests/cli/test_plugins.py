"""A package found through the entry-point group ``cgspn.plugins`` adds entries that configs can name."""

import os
from pathlib import Path

import pytest
import yaml

PLUGIN = '''
import torch
from cgspn.registry import OPERATORS

@OPERATORS.register_module(name="shift")
class Shift(torch.nn.Module):
    """Adds a constant."""

    def __init__(self, dim: int, by: float = 0.0) -> None:
        super().__init__()
        self.by = torch.nn.Parameter(torch.tensor(by))

    def forward(self, x):
        return x + self.by
'''


@pytest.fixture
def installed(monkeypatch):
    """Lays a distribution out as pip would, in a folder on the path of child processes."""
    info = Path("site/shifty-1.0.dist-info")
    info.mkdir(parents=True)
    Path("site/shifty.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shifty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[cgspn.plugins]\nshifty = shifty\nbroken = no_such_module\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path("site").resolve()), os.environ["PYTHONPATH"]]))


def test_plugin_is_trained_by_its_name(installed, shell):
    result = shell(
        "fit", "-c", "base.yaml", "--model.encoder.operator.type=shift", "--model.encoder.operator.by=2"
    )
    assert result.code == 0, result.err
    config = yaml.safe_load(Path("runs/base/0/config.yaml").read_text())
    assert config["model"]["init_args"]["encoder"]["operator"] == {"type": "shift", "by": 2.0}
    assert "Plugin 'broken' was not loaded: ModuleNotFoundError" in result.err
