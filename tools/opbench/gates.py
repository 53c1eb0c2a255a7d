"""What must hold before a speed-up is printed: right answers, and a GPU that nobody else uses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("tests/ops/test_fuzz.py", "tests/ops/test_line_scan.py")
IDLE_MIB, IDLE_PERCENT = 1024, 10


def failing_tests(device: str) -> str:
    """Runs the operator's own tests on ``device``; returns why they do not pass, empty if they do."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TESTS, "-k", device]
    # The tests' tensors are small: more threads only wait for each other.
    variables = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).strip().splitlines()
    summary = lines[-1] if lines else "no output"
    if done.returncode == 0 and " passed" in summary:
        return ""
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return f"the operator's own tests do not pass on {device}: {(failed or [summary])[0]}"


def gpu_in_use() -> str:
    """Why the first visible GPU is not idle, empty if it is. To be asked before this process uses it."""
    index = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    query = ["nvidia-smi", f"--id={index}", "--format=csv,noheader,nounits"]
    try:
        processes = _ask([*query, "--query-compute-apps=pid"])
        memory, busy = _ask([*query, "--query-gpu=memory.used,utilization.gpu"])[0].split(",")
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        return f"nvidia-smi does not say whether the GPU is idle: {error}"
    if processes:
        return f"the GPU is in use by process {', '.join(processes)}"
    # Processes of other containers have no number here, but their memory shows.
    if int(memory) > IDLE_MIB or int(busy) > IDLE_PERCENT:
        return f"the GPU is in use: {memory.strip()} MiB, {busy.strip()} % busy"
    return ""


def _ask(command: list[str]) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if line.strip()]
