"""list, info, export and features, on encoders small enough for every run of the tests."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors
import torch
import yaml
from PIL import Image

import cgspn as package
from cgspn import registry
from cgspn.cli.listing import KINDS
from cgspn.data.bad_samples import BadSampleWarning

SMALL = {"embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32, "img_size": 16, "patch_size": 8}
NODE = {"type": "cgspn_demo_patch8", **SMALL, "mean": [0.1, 0.2, 0.3]}


@pytest.fixture(scope="module")
def encoder():
    encoder = registry.BACKBONES.build(NODE)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return encoder.eval()


@pytest.fixture
def run_folder(tmp_path, encoder):
    """A stage-2 run: the student beside its adapters, and a config."""
    folder = tmp_path / "runs" / "mine" / "0"
    (folder / "checkpoints").mkdir(parents=True)
    state = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    state |= {"adapters.pp.0.weight": torch.ones(3), "logit_scale": torch.zeros(())}
    content = {
        "state_dict": state,
        "hyper_parameters": {"student": NODE},
        "optimizer_states": [torch.ones(9)],
    }
    torch.save(content, folder / "checkpoints" / "last.ckpt")
    model = {"class_path": "Stage2Contrastive", "init_args": {"student": NODE}}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": model}))
    return folder


@pytest.fixture
def pictures(tmp_path):
    """Two sizes, a picture with an alpha channel, a folder in the folder and a truncated picture."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for name, size in [("a.png", (20, 30, 3)), ("b.png", (20, 30, 3)), ("deep/c.png", (9, 17, 4))]:
        Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)).save(folder / name)
    (folder / "bad.png").write_bytes((folder / "a.png").read_bytes()[:200])
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_list_names_every_entry(cgspn, kind):
    result = cgspn("list", kind)
    assert result.code == 0
    names = getattr(registry, kind.upper()).names()
    lines = result.out.splitlines()
    assert lines[0] == kind
    assert [line.split()[0] for line in lines[1:]] == names
    assert all(len(line.split()) > 3 for line in lines[1:]), "an entry has no description"


def test_list_of_everything(cgspn):
    out = cgspn("list").out
    assert [line for line in out.splitlines() if line and line[0] != " "] == list(KINDS)


def test_list_by_pattern(cgspn):
    out = cgspn("list", "backbones", "*so400m*").out
    assert [line.split()[0] for line in out.splitlines()[1:]] == package.list_models("*so400m*")
    assert "operator cgspn" in out


@pytest.mark.parametrize("kind", KINDS)
def test_every_argument_of_every_entry_is_explained(cgspn, kind):
    entries = getattr(registry, kind.upper())
    for name in entries.names():
        lines = cgspn("list", kind, name).out.splitlines()
        for argument in entries.parameters(name):
            row = next(i for i, line in enumerate(lines) if line.startswith(f"  {argument}: "))
            assert lines[row + 1].startswith("      "), f"{name}.{argument} has no explanation"


def test_list_shows_types_and_defaults(cgspn):
    lines = cgspn("list", "operators", "cgspn").out.splitlines()
    assert lines[0] == "operator cgspn: Line-scan propagation in a compressed latent space."
    assert "  dim: int, given by its owner" in lines
    assert "  latent_dim: int | None, default null" in lines
    assert "  directions: Sequence[Literal['tb', 'bt', 'lr', 'rl']], default [tb, bt, lr, rl]" in lines
    assert (
        "  operator: operator node, default cgspn"
        in cgspn("list", "backbones", "cgspn_demo_patch8").out.splitlines()
    )
    assert "  weights: str, required" in cgspn("list", "teachers", "cgspn").out.splitlines()


def test_errors_of_list(cgspn):
    assert cgspn("list", "operator").error.startswith(
        "Unknown kind 'operator'; did you mean 'operators'? Valid: "
    )
    assert (
        cgspn("list", "heads", "mpa").error
        == "Unknown head 'mpa'; did you mean 'map'? Valid: avg, map, token."
    )
    assert cgspn("list", "heads", "x*").error == "No head matches 'x*'; there are: avg, map, token."


def rows_of(out):
    """The table of ``cgspn info``: lists of cells by the name of the part."""
    rows = [re.split(r"\s{2,}", line) for line in out.splitlines()[2:]]
    return {name: cells for name, *cells in rows[: rows.index([""])]}


def test_info_of_everything_that_names_an_encoder(cgspn, run_folder, encoder):
    (run_folder / "node.yaml").write_text(yaml.safe_dump(NODE))
    cgspn("export", run_folder, "exported")
    tables = {}
    for model in (
        run_folder,
        run_folder / "config.yaml",
        run_folder / "node.yaml",
        run_folder / "checkpoints" / "last.ckpt",
        "exported",
    ):
        result = cgspn("info", model)
        assert result.code == 0, result.err
        assert result.out.splitlines()[0] == f"{model}: 1 image of 16 x 16 pixels, float32"
        tables[model] = result.out.splitlines()[1:]
    assert len(set(map(tuple, tables.values()))) == 1
    count = sum(p.numel() for p in encoder.parameters())
    assert any(line.startswith("total") and f" {count:,} " in line for line in tables["exported"])


def test_info_of_a_preset_at_a_size(cgspn):
    small = cgspn("info", "cgspn_demo_patch8").out
    large = cgspn("info", "cgspn_demo_patch8", "--size", 128, 64, "--batch-size", 2).out
    assert "2 images of 128 x 64 pixels" in large.splitlines()[0]
    small, large = rows_of(small), rows_of(large)
    assert small["MLPs"] == ["263,680", "48.7 %", "16.78 M", "59.4 %", "0.6", "31.4 %"]
    assert large["MLPs"][2] == "67.11 M"
    assert small["(line scans)"] == ["0.36 M", "1.3 %"]
    assert small["total"][0] == large["total"][0]


def test_errors_of_info(cgspn, config, tmp_path):
    assert cgspn("info", "cgspn_dmo_patch8").error.startswith(
        "backbone: Unknown backbone 'cgspn_dmo_patch8'; did you"
    )
    assert cgspn("info", "no/such").error == "There is no config, run, checkpoint or folder no/such."
    assert cgspn("info", "no.yaml").error == "Config file no.yaml does not exist."
    empty = config("empty.yaml", {"data": {}})
    assert cgspn("info", empty).error.startswith(
        "Config file empty.yaml has no encoder: neither model.student nor"
    )
    wrong = config("wrong.yaml", {"model": {"encoder": {"type": "vit_demo_patch8", "dept": 3}}})
    assert cgspn("info", wrong).error.startswith(
        "wrong.yaml: model.encoder: Unknown argument of vit_demo_patch8 'de"
    )
    (tmp_path / "bad.yaml").write_text("model: [")
    assert cgspn("info", "bad.yaml").error.startswith("Config file bad.yaml is not valid YAML")
    for size in ([0], [1, 2, 3]):
        assert cgspn("info", "vit_demo_patch8", "--size", *size).error.startswith(
            "--size takes one or two positive"
        )
    assert (
        cgspn("info", "vit_demo_patch8", "--batch-size", 0).error
        == "--batch-size 0 must be at least 1, at most 65535."
    )
    assert cgspn("info").error == "the following arguments are required: MODEL (cgspn info --help)"


def test_export_is_the_encoder_alone(cgspn, run_folder, encoder, tmp_path):
    result = cgspn("export", run_folder, "out")
    assert result.code == 0
    assert result.out.startswith(f"out: encoder of {run_folder / 'checkpoints' / 'last.ckpt'}, ")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    with safetensors.safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(encoder.state_dict())
    again = package.VisionEncoder.from_pretrained(tmp_path / "out")
    images = torch.randn(2, 3, 24, 16)
    for a, b in zip(again.encode(images), encoder.encode(images), strict=True):
        assert torch.equal(a, b)
    assert package.create_model("cgspn_demo_patch8", tmp_path / "out", **SMALL).mean == (0.1, 0.2, 0.3)


def test_errors_of_export(cgspn, run_folder):
    assert cgspn("export", "none", "out").error.startswith(
        "There is no pretrained encoder none; give a folder, a run"
    )
    assert cgspn("export", run_folder, "out", "--part", "teacher").error.endswith(
        "'teacher' is: no such hyperparameter."
    )
    cgspn("export", run_folder, "out")
    assert cgspn("export", run_folder, "out").error == "out already holds config.json; choose another folder."


def read(file):
    """Summary, names and features of a file of features."""
    if file.endswith(".npz"):
        with np.load(file) as content:
            names = content["pictures"].tolist()
            return content["summary"], names, {name: content[f"features/{name}"] for name in names}
    with safetensors.safe_open(file, "np") as content:
        names = json.loads(content.metadata()["pictures"])
        return content.get_tensor("summary"), names, {n: content.get_tensor(f"features/{n}") for n in names}


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("size", [[], ["24"], ["16", "40"], ["native"]], ids=" ".join)
def test_features(cgspn, run_folder, pictures, encoder, suffix, size):
    options = ["--size", *size] if size else []
    with pytest.warns(BadSampleWarning, match="^bad sample 1 left out: bad.png: "):
        result = cgspn("features", pictures, "--model", run_folder, "--out", f"out/f.{suffix}", *options)
    assert result.code == 0, result.err
    assert "out/f." in result.out
    assert "3 of 4 pictures" in result.out
    assert "1 could not be read" in result.out
    assert result.err == ""
    summary, names, features = read(f"out/f.{suffix}")
    assert names == ["a.png", "b.png", "deep/c.png"]
    for row, name in enumerate(names):
        with Image.open(pictures / name) as image:
            pixels = {"": 16, "24": 24, "16 40": (16, 40), "native": (image.height, image.width)}[
                " ".join(size)
            ]
            x = package.ImageTransform(pixels, *encoder.transform[1:])(image)[None]
        with torch.inference_mode():
            expected = encoder.encode(x)
        np.testing.assert_allclose(summary[row], expected.summary[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(features[name], expected.features[0], rtol=1e-4, atol=1e-5)


def test_features_do_not_depend_on_batches_and_workers(cgspn, run_folder, pictures):
    for name, options in {"a": [1, 0], "b": [3, 2]}.items():
        options = ["--batch-size", options[0], "--num-workers", options[1]]
        assert cgspn("features", pictures, "--model", run_folder, "--out", f"{name}.npz", *options).code == 0
    a, b = read("a.npz"), read("b.npz")
    np.testing.assert_allclose(a[0], b[0], rtol=1e-5, atol=1e-6)
    assert a[1] == b[1]


def test_summaries_alone_and_one_picture(cgspn, run_folder, pictures):
    result = cgspn("features", pictures / "a.png", "--model", run_folder, "--out", "s.npz", "--summary-only")
    assert result.out == "s.npz: 1 of 1 pictures, summary (1, 16)\n"
    with np.load("s.npz") as content:
        assert sorted(content) == ["pictures", "summary"]
        assert content["pictures"].tolist() == ["a.png"]


def test_features_of_an_encoder_in_bfloat16(cgspn, run_folder, pictures, tmp_path):
    package.VisionEncoder.from_pretrained(run_folder).bfloat16().save_pretrained(tmp_path / "half")
    assert cgspn("features", pictures, "--model", "half", "--out", "h.npz").code == 0
    assert cgspn("features", pictures, "--model", run_folder, "--out", "f.npz").code == 0
    half, full = read("h.npz")[0], read("f.npz")[0]
    assert half.dtype == np.float32
    assert np.linalg.norm(half - full) < 0.05 * np.linalg.norm(full)


def test_errors_of_features(cgspn, run_folder, pictures, tmp_path):
    def error(images=pictures, model=run_folder, out="x.npz", *options):
        result = cgspn("features", images, "--model", model, "--out", out, *options).error
        assert not list(tmp_path.glob("*x.npz*"))
        return result

    assert error(images="none") == "No folder 'none'."
    assert error(images=run_folder).startswith("No picture in ")
    assert error(model="none").startswith("There is no pretrained encoder none")
    assert error(out="x.csv") == "--out x.csv: unknown suffix '.csv'; valid: .npz, .safetensors."
    for size in (["0"], ["natve"], ["1", "2", "3"], ["-4"]):
        assert "size" in error(pictures, run_folder, "x.npz", "--size", *size)
    assert error(pictures, run_folder, "x.npz", "--batch-size", 0).startswith(
        "--batch-size 0 must be at least 1"
    )
    assert error(pictures, run_folder, "x.npz", "--device", "abacus").startswith("--device abacus: ")
    (tmp_path / "old.npz").write_bytes(b"old")
    assert error(out="old.npz") == "--out old.npz exists already; choose another file."
    for name in ("a.png", "b.png", "deep/c.png"):
        (pictures / name).unlink()
    result = cgspn("features", pictures, "--model", run_folder, "--out", "x.npz")
    assert result.code == 2
    assert result.err.splitlines()[-1].startswith("cgspn: error: None of the 1 pictures in ")
    assert not list(tmp_path.glob("*x.npz*"))


@pytest.mark.slow
def test_interrupted_features_keep_what_was_computed(run_folder, pictures, tmp_path):
    for index in range(400):
        Image.new("RGB", (640, 640), (index % 255, 0, 0)).save(pictures / f"many{index:03}.png")
    command = [
        sys.executable,
        "-m",
        "cgspn.cli",
        "features",
        pictures,
        "--model",
        run_folder,
        "--out",
        "f.npz",
    ]
    process = subprocess.Popen(
        [*map(str, command), "--size", "native", "--batch-size", "1"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Started in the background, this process may ignore SIGINT, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > 10_000 for path in tmp_path.glob(".f.npz-*")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # As Ctrl-C does, loaders included.
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    summary, names, features = read(str(tmp_path / "f.npz"))
    assert 0 < len(names) < 403
    assert len(summary) == len(features) == len(names)
    assert f"{len(names)} of 404 pictures" in out
