"""Which implementation runs, and what is said where there is none."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

from cgspn.ops import library, line_scan, row_stochastic

ROOT = Path(__file__).resolve().parents[2]


def calls(device):
    x, a = torch.ones(1, 2, 3, 3, device=device), torch.zeros(1, 4, 3, 1, 3, 3, device=device)
    return {"line_scan": lambda: line_scan(x, a), "row_stochastic": lambda: row_stochastic(a)}


@pytest.mark.parametrize("op", ["line_scan", "row_stochastic"])
@pytest.mark.parametrize(
    "reason", ["no nvcc was found when the package was built", "torch 2.13.0 is a CPU build"]
)
def test_cuda_tensors_without_kernels_are_an_error_with_a_way_out(op, reason, monkeypatch):
    monkeypatch.setitem(library.STATUS, "cuda", library.Status("cuda", None, reason))
    with FakeTensorMode():
        call = calls("cuda")[op]
        with pytest.raises(RuntimeError) as caught:
            call()
        message = str(caught.value)
        assert reason in message
        assert "CGSPN_REFERENCE=1" in message
        assert "\n" not in message
    forced = dataclasses.replace(library.STATUS["cuda"], forced=True)
    monkeypatch.setitem(library.STATUS, "cuda", forced)
    assert not library.active(torch.device("cuda"))


def test_the_reference_can_be_forced():
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "from cgspn.ops import library\n"
        "print(all(s.forced and not s.active for s in library.STATUS.values() if s.device == 'cpu'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"CGSPN_REFERENCE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "True\n"


@pytest.mark.skipif(not library.STATUS["cpu"].active, reason="the native library was not built")
def test_a_library_built_from_older_sources_is_left_alone(monkeypatch):
    newer = (*library.registration.NAMES, "operator_of_tomorrow")
    monkeypatch.setattr(library.registration, "NAMES", newer)
    status = library._load_all()["cpu"]
    assert not status.active
    assert "operator_of_tomorrow is missing" in status.reason


@pytest.mark.skipif(not library.STATUS["cpu"].active, reason="the native library was not built")
def test_a_cuda_library_needs_a_kernel_for_every_operator(monkeypatch, tmp_path):
    loaded = library.Status("cuda", tmp_path / "_C_cuda.so")
    monkeypatch.setattr(library, "_has_cuda_kernel", lambda name: name != "line_scan_backward")
    status = library._current(loaded, library._has_cuda_kernel)
    assert not status.active
    assert "line_scan_backward is missing" in status.reason


def test_every_environment_variable_is_in_the_docs():
    read = set()
    for path in [*(ROOT / "framework").rglob("*.py"), *(ROOT / "tests").rglob("conftest.py")]:
        read |= set(re.findall(r"\"(CGSPN_[A-Z_]+)\"", path.read_text()))
    for path in (ROOT / "extensions" / "cuda_gspn" / "src").rglob("*.*"):
        read |= set(re.findall(r"getenv\(\"(CGSPN_[A-Z_]+)\"", path.read_text()))
    documented = set(re.findall(r"^\| `(CGSPN_[A-Z_]+)`", (ROOT / "docs" / "operators.md").read_text(), re.M))
    assert read - documented == set()
    assert {"CGSPN_REFERENCE", "CGSPN_CPU_ISA"} <= read
