import re
import tomllib
from pathlib import Path

import yaml

import cgspn

ROOT = Path(__file__).resolve().parents[1]


def test_python_of_the_readme_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(code, names)
    assert names["y"].shape == (1, 64, 37, 53)
    assert names["features"].shape[:3] == (1, 25, 38)
    assert names["summary"].shape == (1, names["features"].shape[-1])


def test_every_file_names_the_same_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cgspn.__version__ == project["version"] == citation["version"]
    assert project["license"] == citation["license"]
