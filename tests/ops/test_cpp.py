"""C++ programs without torch, built against the CMake package that the library installs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cgspn.ops import library

SOURCES = Path(__file__).parent / "cpp"

CMAKE = shutil.which("cmake") or shutil.which("cmake", path=Path(sys.executable).parent)

pytestmark = pytest.mark.skipif(
    not shutil.which("c++") or not CMAKE or not library.STATUS["cpu"].active,
    reason="no C++ compiler, no CMake, or the package was built without them",
)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("build")
    options = [f"-Dcgspn_DIR={library.cmake_dir()}", "-DCMAKE_BUILD_TYPE=Release"]
    for command in (["-S", SOURCES, "-B", folder, *options], ["--build", folder]):
        done = subprocess.run([CMAKE, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_cpu(programs):
    done = subprocess.run([programs / "scan"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "right" in done.stdout
    linked = subprocess.run(["ldd", programs / "scan"], capture_output=True, text=True).stdout
    assert "torch" not in linked


@pytest.mark.cuda
@pytest.mark.skipif(not library.STATUS["cuda"].active, reason="no native CUDA kernels")
def test_cuda(programs):
    done = subprocess.run([programs / "scan_cuda"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "right" in done.stdout
