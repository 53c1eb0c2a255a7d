"""Junk on the command line and in files: one line and exit code 2, or what was asked for."""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.fuzz.harness import REFUSED, attempt, examples, run

import cgspn
import cgspn.cli.trainer  # Lightning keeps the stderr of its import, which must outlive a test.

NODE = {
    "type": "vision_encoder",
    "img_size": 16,
    "patch_size": 8,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
}
BASE = {
    "trainer": {"accelerator": "cpu", "max_epochs": 1},
    "model": {"class_path": "ContrastivePretraining", "init_args": {"encoder": NODE, "text": {"width": 16}}},
    "data": {"class_path": "ImageFolderDataModule", "init_args": {"train": "nowhere"}},
}
VALUES = st.sampled_from(
    [
        3,
        0,
        -1,
        2**70,
        1.5,
        1e400,
        None,
        True,
        "",
        "x",
        ".nan",
        "[]",
        "[1]",
        "{}",
        "{a: 1}",
        "{type: x}",
        "null",
        "é",
        "-",
    ]
)
KEYS = st.sampled_from(
    "model model.lr model.encoder model.encoder.depth model.encoder.operator model.encoder.operator.type "
    "model.encoder.x model.text model.text.width model.betas model.init_from data data.train data.batch_size "
    "data.x trainer.max_epochs trainer.x run run.name checkpoint.every_n_steps ckpt_path seed_everything x "
    "config".split()
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with an encoder, its checkpoint, a config and files that are none of these."""
    folder = tmp_path_factory.mktemp("fuzz")
    encoder = cgspn.create_model(**{"name" if k == "type" else k: v for k, v in NODE.items()})
    encoder.save_pretrained(folder / "encoder")
    state = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {"encoder": NODE}}, folder / "a.ckpt")
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
    (folder / "junk").write_bytes(bytes(range(256)))
    (folder / "empty").mkdir()
    return folder


@examples(300)
@given(data=st.data())
def test_flags_of_fit(place, data):
    flags = [f"--{data.draw(KEYS)}={data.draw(VALUES)}" for _ in range(data.draw(st.integers(1, 2)))]
    out = run("fit", "-c", place / "base.yaml", *flags, "--print_config")
    if out is not REFUSED:
        config = yaml.safe_load(out)
        assert {"model", "data", "trainer"} <= config.keys()


@examples(200)
@given(data=st.data())
def test_other_commands(place, data):
    files = ["encoder", "a.ckpt", "base.yaml", "junk", "empty", "none"]
    words = st.sampled_from(
        [
            *(str(place / name) for name in files),
            *"vit_demo_patch8 vit_dmo operators cgspn [ é --size 0 -1 16 99999999999 --part".split(),
            *("--latency", "--x", "--model", "--out", "x.csv", ""),
        ]
    )
    command = data.draw(st.sampled_from(["list", "info", "export", "report", "features", "nothing", ""]))
    out = run(command, *data.draw(st.lists(words, max_size=4)))
    assert out is REFUSED or out


@examples(350)
@given(data=st.data())
def test_create_model(data):
    names = st.sampled_from(["vit_demo_patch8", "cgspn_demo_patch8", "raw_patches", "vit_dmo", "", None, 3])
    keys = [
        "embed_dim",
        "depth",
        "num_heads",
        "patch_size",
        "img_size",
        "operator",
        "mlp_dim",
        "head",
        "mean",
    ]
    keys += ["norm_eps", "layer_scale", "attention_at", "num_classes", "drop_path_rate", "activation", "x"]
    values = [
        0,
        1,
        2,
        3,
        16,
        -1,
        1.5,
        None,
        "x",
        [],
        [1],
        {},
        {"type": "x"},
        "gspn2",
        float("nan"),
        [0.5] * 3,
    ]
    overrides = data.draw(st.dictionaries(st.sampled_from(keys), st.sampled_from(values), max_size=3))
    model = attempt(cgspn.create_model, data.draw(names), **overrides)
    if model is not REFUSED:
        channels = getattr(model, "in_chans", len(model.mean))
        output = model.eval().encode(torch.zeros(1, channels, 16, 24))
        assert output.features.shape[0] == 1
        assert output.features.isfinite().all()


@examples(250)
@given(data=st.data())
def test_damaged_files(place, data):
    kind = data.draw(st.sampled_from(["a.ckpt", "encoder/model.safetensors", "encoder/config.json"]))
    content = bytearray((place / kind).read_bytes())
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    for _ in range(data.draw(st.integers(0, 3)) if content else 0):
        content[data.draw(st.integers(0, min(len(content), 3000) - 1))] = data.draw(st.integers(0, 255))
    folder = place / "damaged"
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((place / "encoder" / name).read_bytes())
    path = folder / kind.split("/")[-1]
    path.write_bytes(content)
    model = attempt(cgspn.VisionEncoder.from_pretrained, path if kind == "a.ckpt" else folder)
    if model is not REFUSED:
        json.dumps(model.config)
        assert model.encode(torch.zeros(1, len(model.mean), 16, 16)).features.shape[0] == 1


@pytest.mark.parametrize(
    "words",
    [
        ["fit", "-c", "none.yaml"],
        ["fit", "-c", "base.yaml"],
        ["fit", "-c", "base.yaml", "--data.batch_size", "-1"],
        ["scenes", "out", "--num", "-1"],
        ["features", "none", "--model", "encoder", "--out", "f.npz"],
        ["report", "a=none", "--out", "report"],
    ],
    ids=" ".join,
)
def test_in_a_process_of_its_own(place, words):
    command = [sys.executable, "-m", "cgspn.cli", *words]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.splitlines()[-1].startswith("cgspn: error: ")
    assert done.stderr.count("cgspn: error: ") == 1
