"""What an installation holds where parts of the tool chain are missing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cgspn

ROOT = Path(__file__).resolve().parents[1]
WARNING = "cgspn runs the plain PyTorch reference on cpu, which is slow: "
CODE = """
import torch, cgspn
encoder = cgspn.create_model("cgspn_demo_patch8", depth=1)
cgspn.line_scan(torch.ones(1, 2, 3, 3), torch.zeros(1, 4, 3, 1, 3, 3))
print(encoder(torch.zeros(1, 3, 16, 16)).shape[0])
"""


@pytest.mark.parametrize(
    ("compiler", "folder", "reason"),
    [
        ("no-such-compiler", Path(torch.__file__).parent, "no C++ compiler was found when the package was"),
        (
            None,
            ROOT / "docs",
            f"torch in {ROOT / 'docs'} has no stable ABI headers (2.11 or newer is needed)",
        ),
    ],
    ids=["no compiler", "no headers"],
)
def test_installs_and_runs_on_the_reference(tmp_path, compiler, folder, reason):
    cmake = Path(pytest.importorskip("cmake").CMAKE_BIN_DIR, "cmake")
    environment = {**os.environ, "CXX": compiler} if compiler else dict(os.environ)
    options = [f"-DPython_EXECUTABLE={sys.executable}", f"-DCGSPN_TORCH_DIR={folder}"]
    for command in (
        [cmake, "-S", ROOT, "-B", tmp_path / "build", *options],
        [cmake, "--install", tmp_path / "build", "--prefix", tmp_path / "site"],
    ):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "site/cgspn").iterdir()} == {"_build.py"}
    package = Path(cgspn.__file__).parent
    shutil.copytree(
        package, tmp_path / "site/cgspn", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.so")
    )
    # Without the site module, so that no hook of an editable installation lends its library.
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "site"), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-S", "-c", CODE], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.stdout == "1\n", done.stderr
    [warning] = [line for line in done.stderr.splitlines() if WARNING in line]
    assert warning.partition(WARNING)[2].startswith(reason)
