"""What is active and why not, with the switches that change it."""

import os
import subprocess
import sys

import pytest

from cgspn import env

SCAN = """
import torch
from cgspn.ops import line_scan
for _ in range(3):
    y = line_scan(torch.ones(1, 2, 3, 4), torch.zeros(1, 4, 3, 2, 3, 4))
print(tuple(y.shape))
"""


def python(*arguments, **variables):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, env=os.environ | variables
    )


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"CGSPN_REFERENCE": "1"}, "CGSPN_REFERENCE is set"),
        ({"CGSPN_LIBRARY_DIR": "/nowhere"}, "CGSPN_LIBRARY_DIR=/nowhere holds no such library"),
    ],
    ids=["switch", "library"],
)
def test_the_reference_runs_and_says_so_once(variables, reason):
    done = python("-c", SCAN, **variables)
    assert done.stdout == "(1, 2, 3, 4)\n"
    assert done.stderr.count("runs the plain PyTorch reference on cpu, which is slow") == 1
    assert reason in done.stderr
    report = python("-W", "ignore", "-m", "cgspn.env", **variables).stdout
    [line] = [line for line in report.splitlines() if line.startswith("native cpu kernels")]
    assert line.endswith(f"not active: {reason}")
    name, value = next(iter(variables.items()))
    assert any(line.split() == [name, value] for line in report.splitlines())


def test_the_report_names_versions():
    facts = dict(line.split("  ", 1) for line in env.report().splitlines())
    assert {"cgspn", "python", "platform", "cpu", "torch", "lightning", "numpy"} <= facts.keys()
