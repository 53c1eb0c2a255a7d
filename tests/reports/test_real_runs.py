import json

import numpy as np
import pytest
from PIL import Image

from cgspn.cli import main


@pytest.fixture
def pictures(tmp_path):
    """ADE20K's layout: four training and two validation pictures of noise over a wall and a sky."""
    pytest.importorskip("mmseg")
    generator = np.random.default_rng(0)
    labels = np.repeat([1, 3], 8).astype(np.uint8)[:, None].repeat(24, 1)
    for split, count in (("training", 4), ("validation", 2)):
        for kind in ("images", "annotations"):
            (tmp_path / "ade" / kind / split).mkdir(parents=True)
        for i in range(count):
            image = (labels[..., None] * 50 + generator.integers(0, 40, (16, 24, 3))).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / f"ade/images/{split}/{i}.jpg")
            Image.fromarray(labels).save(tmp_path / f"ade/annotations/{split}/{i}.png")
    return tmp_path / "ade"


def test_report_on_runs_of_the_command_line(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = ["--data", "ADE20KDataModule", "--data.root", str(pictures), "--data.scale", "null"]
    data += ["--data.crop_size", "[16,24]", "--data.augment", "false", "--data.batch_size", "2"]
    data += [
        "--data.num_workers",
        "0",
        "--trainer.accelerator",
        "cpu",
        "--trainer.enable_progress_bar",
        "false",
    ]
    data += ["--trainer.enable_model_summary", "false", "--trainer.log_every_n_steps", "1"]
    first = ["--model", "SegmentationModule", "--model.encoder", "vit_demo_patch8", "--run.name", "first"]
    assert main(["fit", *first, *data, "--trainer.max_epochs", "1"]) == 0
    weights = ["--model.init_from.path", "runs/first/latest/checkpoints/last.ckpt"]
    second = ["--model", "SegmentationModule", "--model.encoder", "vit_demo_patch8", "--run.name", "second"]
    assert main(["fit", *second, *weights, *data, "--trainer.max_epochs", "2"]) == 0
    capsys.readouterr()
    report = ["report", "probe=runs/second/latest", "--out", "report", "--latency", "16"]
    assert main(report) == 0
    assert capsys.readouterr().out.strip().endswith("report.html")
    text = (tmp_path / "report/report.md").read_text()
    figures = json.loads((tmp_path / "runs/second/0/segmentation.json").read_text())
    [row] = [line for line in text.splitlines() if line.startswith("| probe |")]
    assert f"| {figures['mIoU']:.1f} | {figures['aAcc']:.1f} | {figures['mAcc']:.1f} | 2 |" in row
    assert "695 k" in row
    assert "- first/0: SegmentationModule" in text
    assert "figures/losses.png" in text
    assert "figures/pictures.png" in text
