import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from cgspn.cli import main
from cgspn.reports.report import block_curves
from cgspn.reports.rows import DASH
from cgspn.reports.runs import Run, read_run, with_sources


def arguments(runs):
    return [f"{name}={runs}/probe_{name}/0" for name in ("teacher", "stage1", "raw")]


def report(runs, out, *extra):
    assert main(["report", *arguments(runs), "--out", str(out), *extra]) == 0
    return (out / "report.md").read_text(), (out / "report.html").read_text()


def markdown_row(text, label):
    [line] = [line for line in text.splitlines() if line.startswith(f"| {label} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


class Page(HTMLParser):
    """Collects tags, attributes and text; complains about tags that are not closed in order."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.text, self.images = [], [], [], 0
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        self.images += tag == "img"
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_table_holds_each_runs_figures(runs, tmp_path):
    text, _ = report(runs, tmp_path / "out", "--latency", "16", "24")
    header = next(line for line in text.splitlines() if line.startswith("| encoder"))
    assert header.count("ms at") == 2
    teacher = markdown_row(text, "teacher")
    assert teacher[1:8] == ["1.23 k", "40.0", "71.2", "66.6", "3", "41.5", "38.2"]
    assert all(float(cell) > 0 for cell in teacher[8:])
    assert markdown_row(text, "stage1")[6:8] == [DASH, DASH]
    assert markdown_row(text, "raw")[2] == "4.0"
    assert all(float(cell) > 0 for cell in markdown_row(text, "raw")[8:])


def test_classes_are_listed_by_size(runs, tmp_path):
    text, _ = report(runs, tmp_path / "out", "--latency")
    assert markdown_row(text, "wall") == ["wall", "37.0", "60.0", "50.0", "5.0"]
    assert text.index("| wall |") < text.index("| sky |") < text.index("| tree |")


def test_page_is_well_formed_and_needs_no_network(runs, tmp_path):
    _, page = report(runs, tmp_path / "out", "--latency")
    parsed = Page(page)
    assert parsed.links
    assert all(link.startswith("data:image/png;base64,") for link in parsed.links)
    words = re.sub(r"base64,[\w+/=]+", "", page)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<link", words)
    # Two pictures, each with truth and three predictions; the losses; the blocks' errors.
    assert parsed.images == 2 * 5 + 2
    words = " ".join(parsed.text)
    assert "IoU per class" in words
    assert "Relative error per block: stage1/0" in words


def test_figures_are_files_beside_the_markdown(runs, tmp_path):
    text, _ = report(runs, tmp_path / "out", "--latency")
    names = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert len(names) == 3
    for name in names:
        Image.open(tmp_path / "out" / name).load()


def test_origins_are_found_through_weights_and_teacher(runs):
    found = [run.name for run in with_sources([read_run(runs / "probe_stage1/0")])]
    assert found == ["teacher/0", "stage1/0", "probe_stage1/0"]


def test_block_errors_are_drawn_from_the_finest_curves_and_end_with_the_validation():
    run = Run(Path())
    for block, error in ((0, 0.5), (1, 0.25)):
        run.curves[f"train/relative_error/block_{block}"] = [(8, 1.0), (16, 0.75)]
        run.curves[f"val/relative_error/block_{block}"] = [(16, error)]
    curves, end = block_curves(run)
    assert curves == {block: [(8, 1.0), (16, 0.75)] for block in (0, 1)}
    assert end == {0: 0.5, 1: 0.25}
    assert block_curves(Run(Path())) == ({}, {})


def test_a_dash_is_explained_where_there_is_one(runs, tmp_path):
    for rows, explained in ((["stage1"], True), (["teacher"], False)):
        given = [f"{name}={runs}/probe_{name}/0" for name in rows]
        assert main(["report", *given, "--out", str(tmp_path / "out"), "--latency"]) == 0
        assert (f"{DASH}: no such figure" in (tmp_path / "out/report.md").read_text()) == explained


def test_relative_paths_count_from_above_the_runs(runs, monkeypatch, tmp_path):
    config = runs / "probe_stage1/0/config.yaml"
    config.write_text(config.read_text().replace(str(runs.parent) + "/", ""))
    monkeypatch.chdir("/")
    assert read_run(runs / "probe_stage1/0").init_from() == runs / "stage1/0"


@pytest.mark.parametrize(
    "missing",
    ["config.yaml", "metrics.csv", "segmentation.json", "segmentation_examples.npz"],
)
@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_what_is_missing_or_damaged_leaves_a_dash(runs, tmp_path, missing, damage):
    for run in ("probe_teacher", "teacher"):
        file = runs / run / "0" / missing
        if damage == "missing":
            file.unlink(missing_ok=True)
        elif file.exists():
            file.write_bytes(b"\x00{[:")
    text, page = report(runs, tmp_path / "out", "--latency")
    Page(page)
    assert markdown_row(text, "stage1")[2] == "30.0"
    if missing == "segmentation.json":
        assert markdown_row(text, "teacher")[1:6] == [DASH] * 5


def test_runs_that_have_nothing_but_a_config(runs, tmp_path):
    for file in runs.glob("probe_*/0/*"):
        if file.is_file() and file.name != "config.yaml":
            file.unlink()
    text, page = report(runs, tmp_path / "out")
    Page(page)
    assert markdown_row(text, "raw")[1:] == [DASH] * (len(markdown_row(text, "raw")) - 1)


def test_labels_are_escaped(runs, tmp_path):
    out = tmp_path / "out"
    label = "a <b>|&"
    assert main(["report", f"{label}={runs}/probe_raw/0", "--out", str(out), "--latency"]) == 0
    assert "<b>" not in (out / "report.html").read_text()
    assert label in " ".join(Page((out / "report.html").read_text()).text)
    assert "a <b>\\|&" in (out / "report.md").read_text()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["{runs}/nowhere"], "no run folder"),
        (["{runs}"], "is not a run folder"),
        (["a={runs}/probe_raw/0", "a={runs}/probe_teacher/0"], "Two runs are called 'a'"),
        (["{runs}/probe_raw/0", "--latency", "0"], "--latency 0"),
    ],
)
def test_bad_input_is_one_line(runs, tmp_path, capsys, given, message):
    command = ["report", *(part.format(runs=runs) for part in given), "--out", str(tmp_path / "out")]
    assert main(command) != 0
    errors = capsys.readouterr().err.strip().splitlines()
    assert message in errors[-1]
    assert "Traceback" not in "".join(errors)


def test_a_run_may_stand_without_a_label(runs, tmp_path):
    assert main(["report", f"{runs}/probe_raw/0", "--out", str(tmp_path / "out"), "--latency"]) == 0
    assert "| probe_raw/0 |" in (tmp_path / "out/report.md").read_text()


def test_an_encoder_that_is_not_installed_is_not_timed(runs, tmp_path):
    results = runs / "probe_raw/0/segmentation.json"
    results.write_text(results.read_text().replace("raw_patches", "somebody_elses"))
    text, _ = report(runs, tmp_path / "out", "--latency", "16")
    assert markdown_row(text, "raw")[-1] == DASH
    assert float(markdown_row(text, "teacher")[-1]) > 0
    assert "raw could not be timed" in text


def test_a_run_that_vanished_is_left_out(runs, tmp_path):
    shutil.rmtree(runs / "stage1")
    text, _ = report(runs, tmp_path / "out", "--latency")
    assert markdown_row(text, "stage1")[2] == "30.0"
    assert "Relative error" not in text
