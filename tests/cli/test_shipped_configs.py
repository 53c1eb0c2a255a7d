"""Every file under configs/ is a complete, valid config."""

from pathlib import Path

import pytest

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(CONFIGS)) for file in FILES])
def test_config_is_valid(cgspn, file):
    result = cgspn("fit", "-c", file, "--print_config")
    assert result.code == 0, result.err
    assert result.config["model"]["class_path"].startswith("cgspn.")
    assert result.config["data"]["class_path"].startswith("cgspn.")
    assert result.config["run"]["name"] == file.relative_to(CONFIGS).with_suffix("").as_posix()
