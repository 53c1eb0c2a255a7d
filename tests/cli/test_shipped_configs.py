"""Every file under configs/ is a complete, valid config, or valid over the demo's (``ablations/``)."""

from pathlib import Path

import pytest
import yaml

CONFIGS = Path(__file__).parents[2] / "configs"
ABLATIONS = sorted(CONFIGS.glob("ablations/*/*.yaml"))
FILES = sorted(set(CONFIGS.rglob("*.yaml")) - set(ABLATIONS))
# The folder of an ablation says what it is laid over; those of the student fit both stages.
BASES = {"student": "demo/stage2.yaml", "stage1": "demo/stage1.yaml", "stage2": "demo/stage2.yaml"}


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(CONFIGS)) for file in FILES])
def test_config_is_valid(cgspn, file):
    result = cgspn("fit", "-c", file, "--print_config")
    assert result.code == 0, result.err
    assert result.config["model"]["class_path"].startswith("cgspn.")
    assert result.config["data"]["class_path"].startswith("cgspn.")
    assert result.config["run"]["name"] == file.relative_to(CONFIGS).with_suffix("").as_posix()


@pytest.mark.parametrize("file", ABLATIONS, ids=[str(file.relative_to(CONFIGS)) for file in ABLATIONS])
def test_ablation_changes_what_it_names(cgspn, file):
    base, content = CONFIGS / BASES[file.parent.name], yaml.safe_load(file.read_text())
    result = cgspn("fit", "-c", base, "-c", file, "--print_config").config
    assert content.keys() <= {"model", "trainer"}
    assert_holds(content["model"], result["model"]["init_args"])
    assert_holds(content.get("trainer", {}), result["trainer"])


def assert_holds(part, whole):
    """All that ``part`` says is in ``whole``."""
    for key, value in part.items():
        if isinstance(value, dict):
            assert_holds(value, whole[key])
        else:
            assert whole[key] == value
