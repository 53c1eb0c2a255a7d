"""Both stages and the curriculum from teachers of transformers, through the command line."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import cgspn.cli.trainer  # noqa: F401  (Lightning keeps the stderr of its import, which must outlive a test)
from cgspn.cli import main
from cgspn.registry import TEACHERS

pytest.importorskip("transformers")

CLIP = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
STUDENTS = {
    "siglip": dict(mlp_dim=48),
    "siglip2": dict(mlp_dim=48, head={"type": "map", "num_heads": 4}),
    "clip": dict(mlp_dim=48, activation="quick_gelu", norm_eps=1e-5, pre_norm=True, summary_dim=24, **CLIP),
    "dinov2": dict(mlp_dim=64, activation="gelu", layer_scale=1.0, **IMAGENET),
}


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """Twelve noise pictures with captions, in the current folder."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    with tarfile.open("pairs.tar", "w") as tar:
        for i in range(12):
            picture = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8)).save(picture, "PNG")
            for suffix, content in (("png", picture.getvalue()), ("txt", f"cat {i % 5}".encode())):
                member = tarfile.TarInfo(f"{i:03}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def fit(shards):
    def run(name, model, teacher, student, size=16, **arguments):
        normalisation = {key: student[key] for key in ("mean", "std") if key in student}
        encoder = dict(img_size=size, patch_size=4, embed_dim=32, depth=3, num_heads=4) | student
        config = {
            "trainer": {
                "accelerator": "cpu",
                "max_steps": 2,
                "val_check_interval": 2,
                "check_val_every_n_epoch": None,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "log_every_n_steps": 1,
            },
            "model": {
                "class_path": model,
                "init_args": {
                    "teacher": teacher,
                    "student": {"type": "vision_encoder", "operator": {"type": "cgspn"}, **encoder},
                    **arguments,
                },
            },
            "data": {
                "class_path": "WebDatasetDataModule",
                "init_args": {
                    "train": "pairs.tar",
                    "val": "pairs.tar",
                    "image_size": size,
                    "batch_size": 4,
                    "num_workers": 0,
                    **normalisation,
                },
            },
        }
        Path(f"{name}.yaml").write_text(yaml.safe_dump(config))
        assert main(["fit", "-c", f"{name}.yaml"]) == 0
        folder = Path("runs") / name / "latest"
        path = folder / "checkpoints" / "last.ckpt"
        state = torch.load(path, weights_only=True)["state_dict"]
        metrics = json.loads((folder / "metrics.json").read_text())
        assert all(np.isfinite(value) for value in metrics.values())
        return str(path), state, metrics

    return run


@pytest.mark.parametrize("kind", STUDENTS)
def test_both_stages(hf_folder, fit, kind):
    teacher, student = {"type": "transformers", "weights": str(hf_folder(kind))}, STUDENTS[kind]
    path, state, metrics = fit("stage1", "Stage1Distillation", teacher, student)
    assert {name.split(".")[0] for name in state} == {"encoder", "logit_scale"}
    assert {f"val/relative_error/block_{i}" for i in range(3)} <= metrics.keys()
    assert ("val/retrieval/num_captions" in metrics) == (kind != "dinov2")

    text = {
        "siglip2": {"train_text": True, "contrastive": "sigmoid"},
        "dinov2": {"contrastive_weight": 0.0},
    }.get(kind, {"text_cache": "captions.safetensors"})
    init_from = {"path": path, "part": "encoder"}
    path, state, metrics = fit("stage2", "Stage2Contrastive", teacher, student, init_from=init_from, **text)
    parts = {name.split(".")[0] for name in state} - {"logit_scale", "logit_bias"}
    assert parts == {"encoder", "taps"} | ({"text"} if kind == "siglip2" else set())
    assert {"val/pp_mse", "val/pb_kl", "val/features_cosine"} <= metrics.keys()
    assert ("val/contrastive" in metrics) == (kind != "dinov2")
    assert Path("captions.safetensors").exists() == ("text_cache" in text)

    if kind == "siglip2":
        tower = TEACHERS.build({"type": "cgspn", "weights": path}).text
        assert all(torch.equal(value, state[f"text.{name}"]) for name, value in tower.state_dict().items())
        original = TEACHERS.build(teacher).text.state_dict()
        assert any(not torch.equal(value, original[name]) for name, value in tower.state_dict().items())
    if kind == "siglip":
        previous = {"type": "cgspn", "weights": path}
        _, state, metrics = fit("highres", "HighResolution", previous, student, size=24)
        assert not any("teacher" in name for name in state)
        assert "val/features_cosine" in metrics


@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_an_attention_student_has_nothing_to_learn(hf_folder, fit, kind):
    teacher = {"type": "transformers", "weights": str(hf_folder(kind))}
    resampling = {"siglip": "bicubic", "siglip2": "bilinear_antialias"}[kind]
    student = STUDENTS[kind] | {"operator": {"type": "attention"}, "pos_resampling": resampling}
    _, _, metrics = fit("stage1", "Stage1Distillation", teacher, student, lr=0.0)
    assert metrics["val/loss"] < 1e-9
    assert metrics["val/features_cosine"] == metrics["val/summary_cosine"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("dinov2", {}, "The teacher has no text tower, which the contrastive loss needs: set contrastive"),
        ("dinov2", {"contrastive_weight": 0.0, "text_cache": "t"}, "no text tower; leave out text_cache='t'"),
        ("siglip", {"train_text": True, "text_cache": "t"}, "train_text changes the embeddings"),
    ],
    ids=["contrastive", "cache", "trained_text"],
)
def test_what_does_not_go_together(hf_folder, fit, capfd, kind, arguments, message):
    teacher = {"type": "transformers", "weights": str(hf_folder(kind))}
    with pytest.raises(AssertionError):
        fit("bad", "Stage2Contrastive", teacher, STUDENTS[kind], **arguments)
    assert message in capfd.readouterr().err


def test_a_student_that_is_no_twin(hf_folder, fit, capfd):
    teacher = {"type": "transformers", "weights": str(hf_folder("clip"))}
    for left_out, message in (
        ("activation", "The student has activation=gelu_tanh, its teacher quick_gelu; set the student's"),
        ("mean", "The student normalises images by"),
    ):
        student = {key: value for key, value in STUDENTS["clip"].items() if key != left_out}
        with pytest.raises(AssertionError):
            fit("bad", "Stage1Distillation", teacher, student)
        assert message in capfd.readouterr().err


def test_a_student_whose_summary_is_no_text(hf_folder, fit, capfd):
    student = {key: value for key, value in STUDENTS["clip"].items() if key != "summary_dim"}
    with pytest.raises(AssertionError):
        fit("bad", "Stage2Contrastive", {"type": "transformers", "weights": str(hf_folder("clip"))}, student)
    assert "set the encoder's summary_dim=24." in capfd.readouterr().err


def test_a_missing_extra_is_one_line(fit, capfd, monkeypatch):
    import sys

    for name, extra in (("timm", "timm"), ("open_clip", "openclip")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(AssertionError):
            fit("bad", "Stage1Distillation", {"type": name, "name": "x", "weights": "y"}, {})
        error = capfd.readouterr().err
        assert f"{name} is not installed; get it with: pip install 'cgspn[{extra}]'" in error
