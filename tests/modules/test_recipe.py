"""The whole recipe through the command line, with the demo's own configs and a few scenes."""

import json
from pathlib import Path

import pytest
import torch

import cgspn.cli.trainer  # noqa: F401  (Lightning keeps the stderr of its import, which must outlive a test)
from cgspn.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"
SHORT = ["--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1", "--model.warmup_steps", "0"]


def fit(config, name, *arguments):
    options = [*SHORT, "--run.name", name, "--data.batch_size", "8", "--trainer.enable_progress_bar", "false"]
    assert main(["fit", "-c", str(CONFIGS / config), *options, *map(str, arguments)]) == 0
    run = Path("runs") / name / "latest"
    return run / "checkpoints" / "last.ckpt", json.loads((run / "metrics.json").read_text())


@pytest.mark.slow
def test_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scenes = ["--format", "shards", "--num", "16", "--num-val", "8", "--size", "128", "--num-workers", "1"]
    assert main(["scenes", "pairs", *scenes]) == 0
    data = ["--data.train", "pairs/train-*.tar", "--data.val", "pairs/val-*.tar"]

    teacher, metrics = fit("demo/teacher.yaml", "teacher", *data)
    assert metrics["val/retrieval/num_images"] == 8
    stage1, metrics = fit("demo/stage1.yaml", "stage1", *data, "--model.teacher.weights", teacher)
    assert {f"val/relative_error/block_{i}" for i in range(4)} <= metrics.keys()
    start = ["--model.init_from.path", stage1]
    stage2, metrics = fit("demo/stage2.yaml", "stage2", *data, *start, "--model.teacher.weights", teacher)
    assert {"val/pp_mse", "val/pb_kl", "val/contrastive", "val/features_cosine"} <= metrics.keys()

    previous = stage2
    for size in (96, 128):
        sizes = ["--model.student.img_size", size, "--data.image_size", size]
        path, metrics = fit(
            "highres/demo.yaml", f"highres/{size}", *data, *sizes, "--model.teacher.weights", previous
        )
        assert metrics["val/features_cosine"] > 0.5
        parameters = torch.load(path, weights_only=True)["hyper_parameters"]
        assert parameters["student"]["img_size"] == size
        assert Path(parameters["teacher"]["weights"]).resolve() == previous.resolve()
        previous = path

    checkpoint = torch.load(previous, weights_only=True)
    assert {name.split(".")[0] for name in checkpoint["state_dict"]} == {"encoder", "logit_scale", "taps"}
    config = previous.parents[1] / "config.yaml"
    assert main(["validate", "-c", str(config), "--ckpt_path", str(previous)]) == 0
