import json
import subprocess
import sys
from pathlib import Path

import pytest

from cgspn.ops import library

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def bench(*arguments):
    command = [sys.executable, TOOLS / "bench_encoder.py", "--device", "cpu", "--size", "tiny_patch16"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True)


@pytest.mark.skipif(not library.STATUS["cpu"].active, reason="the native library is not active")
def test_parts_are_added_to_a_record(tmp_path):
    record = tmp_path / "record.json"
    for part in ("sublayer", "block"):
        done = bench("--parts", part, "--grids", "3", "--batch", "2", "--budget", "0.01", "--json", record)
        assert done.returncode == 0, done.stderr
    parts = json.loads(record.read_text())["parts"]
    assert [row["batch"] for row in parts["sublayer"]["rows"]] == [1, 2]
    (row,) = parts["block"]["rows"]
    assert row["speed-up"] == pytest.approx(row["vit ms"] / row["cgspn ms"])
    tables = record.with_suffix(".md").read_text()
    assert "## sublayer" in tables
    assert "| speed-up |" in tables


def test_parts_that_need_a_gpu_say_so():
    done = bench("--parts", "latency")
    assert done.returncode != 0
    assert "latency needs --device cuda; on a CPU: sublayer, block" in done.stderr
