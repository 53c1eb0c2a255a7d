"""The operators' benchmark: floors, and what it does not print."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def opbench(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    from opbench import gates, record, runner, table

    return {"gates": gates, "record": record, "runner": runner, "table": table}


@pytest.fixture
def measured(opbench):
    case = opbench["table"].Case((1, 2, 5, 4), "fp32")
    rows = [opbench["runner"].run(case, phase, "cpu", 0.0, True) for phase in ("forward", "backward")]
    return {
        "environment": opbench["record"].environment("cpu", 0.0),
        "withheld": "",
        "rows": json.loads(json.dumps(rows)),
    }


def test_floors(opbench):
    case = opbench["table"].Case
    whole = case((1, 64, 8, 8))
    assert [whole.tensors(p) for p in ("forward", "training", "backward")] == [22, 26, 47]
    assert case((1, 24, 8, 8), shared=True).tensors("forward") == 10 + 12 / 24
    assert case((1, 8, 8, 8), directions=(2,)).tensors("forward") == 7


def test_speed_ups_are_withheld_with_the_reason(opbench, measured):
    markdown = opbench["record"].markdown
    assert "%" in markdown(measured)
    reason = "the operator's own tests do not pass on cpu"
    shown = markdown(measured | {"withheld": reason}, measured)
    assert reason in shown
    assert "%" not in shown
    rows = [line.split("|") for line in shown.splitlines() if line.startswith(("| forward", "| backward"))]
    columns = next(line.split("|") for line in shown.splitlines() if line.startswith("| pass"))
    claims = [i for i, name in enumerate(columns) if name.strip() in ("ideal", "schedule") or " x " in name]
    assert len(rows) == 2
    assert {row[i].strip() for row in rows for i in claims} <= {"-", ""}


def test_compares_with_a_base(opbench, measured):
    slower = copy.deepcopy(measured)
    for row in slower["rows"]:
        row["times"]["cgspn"] = {
            name: value if isinstance(value, str) else 2 * value
            for name, value in row["times"]["cgspn"].items()
        }
    assert opbench["record"].markdown(measured, slower).count("| 2.00 |") == 2


def test_failing_tests_are_seen(opbench, monkeypatch, tmp_path):
    gates = opbench["gates"]
    (tmp_path / "test_it.py").write_text("def test_cpu(): assert False\n")
    monkeypatch.setattr(gates, "TESTS", (str(tmp_path / "test_it.py"),))
    assert "do not pass on cpu: FAILED" in gates.failing_tests("cpu")
    (tmp_path / "test_it.py").write_text("def test_cpu(): pass\n")
    assert gates.failing_tests("cpu") == ""
    assert gates.failing_tests("cuda") != ""  # nothing was run: no answer is no success


def test_show_prints_a_record(measured, tmp_path):
    (tmp_path / "record.json").write_text(json.dumps(measured))
    command = [sys.executable, TOOLS / "bench_ops.py", "--show", tmp_path / "record.json"]
    done = subprocess.run(
        [*command, "--record", tmp_path / "records"], capture_output=True, text=True, check=True
    )
    assert "| forward | (1, 2, 5, 4) | fp32 |" in done.stdout
    names = sorted(path.name for path in (tmp_path / "records").iterdir())
    assert [name.split("-fp32-pt")[0][:10] for name in names] == ["line_scan-"] * 2
