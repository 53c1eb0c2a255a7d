import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from cgspn.cli import main

CONFIGS = Path(__file__).parents[2] / "configs/ade20k"
SMALL = [
    *("--model.encoder.type", "vit_demo_patch8", "--model.encoder.img_size", "64"),
    *("--model.crop_size", "[96,96]", "--model.stride", "[64,64]", "--model.warmup_steps", "0"),
    *("--data.crop_size", "[64,64]", "--data.scale", "[512,128]", "--data.num_workers", "0"),
    *("--data.batch_size", "3", "--trainer.accelerator", "cpu", "--trainer.precision", "32-true"),
    *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
]
UPERNET = ["--model.out_indices", "[0,1,2,3]", "--model.decoder.channels", "16"]


@pytest.fixture
def ade20k(tmp_path, real_data):
    """The real sample with its three pairs as training pictures too."""
    root = tmp_path / "ade20k"
    for kind in ("images", "annotations"):
        (root / kind).mkdir(parents=True)
        for split in ("training", "validation"):
            (root / kind / split).symlink_to(real_data / "ade20k_sample" / kind / "validation")
    return root


@pytest.mark.parametrize("name", ["linear", "upernet"])
def test_the_checklist_is_written_out(name):
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert (model["mode"], model["crop_size"], model["stride"]) == ("slide", [512, 512], [341, 341])
    assert data["reduce_zero_label"] is True
    assert {"decoder", "out_indices", "norm", "lr", "weight_decay"} <= model.keys()
    assert config["trainer"]["max_steps"] == {"linear": 40_000, "upernet": 160_000}[name]


@pytest.mark.parametrize("name", ["linear", "upernet"])
def test_configs_run_on_real_pictures(name, ade20k, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    extra = UPERNET if name == "upernet" else []
    config = ["-c", str(CONFIGS / f"{name}.yaml"), "--data.root", str(ade20k)]
    assert main(["fit", *config, *SMALL, *extra, "--trainer.fast_dev_run", "1"]) == 0


def test_fit_test_and_predict(ade20k, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shorten = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "1", "--run.name", "probe"]
    config = ["-c", str(CONFIGS / "linear.yaml"), "--data.root", str(ade20k)]
    assert main(["fit", *config, *SMALL, *shorten]) == 0
    run = tmp_path / "runs/probe/0"
    fitted = json.loads((run / "segmentation.json").read_text())
    assert fitted["num_images"] == 3
    maps = [np.asarray(Image.open(path)) for path in ade20k.glob("annotations/validation/*.png")]
    assert fitted["num_classes_present"] == len(set().union(*(m[m > 0].tolist() for m in maps)))
    again = ["-c", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints/last.ckpt")]
    assert main(["test", *again, "--run.name", "probe_test"]) == 0
    tested = json.loads((tmp_path / "runs/probe_test/0/segmentation.json").read_text())
    assert tested["mIoU"] == pytest.approx(fitted["mIoU"])
    metrics = json.loads((tmp_path / "runs/probe_test/0/metrics.json").read_text())
    assert metrics["test/mIoU"] == pytest.approx(fitted["mIoU"], rel=1e-5)
    images = str(ade20k / "images/validation")
    assert main(["predict", *again, "--run.name", "probe_predict", "--data.images", images]) == 0
    outputs = sorted((tmp_path / "runs/probe_predict/0/predictions").iterdir())
    assert len(outputs) == 6
    for picture in (ade20k / "images/validation").iterdir():
        labels = Image.open(tmp_path / f"runs/probe_predict/0/predictions/{picture.stem}.png")
        assert labels.size == Image.open(picture).size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.root", "nowhere"], "nowhere/images/training"),
        (["--model.decoder.type", "segmenter"], "linear, upernet"),
        (["--model.mode", "sliding"], "sliding"),
    ],
)
def test_errors_are_one_line(arguments, message, ade20k, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = ["-c", str(CONFIGS / "linear.yaml"), "--data.root", str(ade20k)]
    assert main(["fit", *config, *SMALL, *arguments]) != 0
    errors = capsys.readouterr().err.strip().splitlines()
    assert message in errors[-1]
    assert not any("Traceback" in line for line in errors)
