"""``timm.create_model`` in processes of its own: what counts is which package is imported first."""

import subprocess
import sys

import pytest

BOTH_ORDERS = pytest.mark.parametrize("imports", ["import cgspn, timm", "import timm, cgspn"])


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.fixture(scope="module")
def _timm():
    done = run("import timm")
    if done.returncode:
        pytest.skip(f"timm cannot be imported: {done.stderr.strip().splitlines()[-1]}")


@pytest.mark.usefixtures("_timm")
@BOTH_ORDERS
def test_timm_builds_every_cgspn_model(imports):
    code = f"""
{imports}
import torch
assert timm.list_models("cgspn_*") == cgspn.list_models("cgspn_*"), timm.list_models("cgspn_*")
model = timm.create_model("cgspn_demo_patch8", num_classes=5, drop_path_rate=0.1, depth=2).eval()
assert isinstance(model, cgspn.VisionEncoder)
images = torch.randn(2, 3, 40, 72)
assert model(images).shape == (2, 5)
assert model.forward_features(images).shape == (2, 5, 9, 128)
taps = model.forward_intermediates(images, indices=1, intermediates_only=True)
assert [tap.shape for tap in taps] == [(2, 128, 5, 9)]
config = timm.data.resolve_model_data_config(model)
assert config["input_size"] == (3, 64, 64) and config["mean"] == model.mean, config
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("_timm")
def test_timm_loads_weights(tmp_path):
    code = f"""
import cgspn, timm, torch
first = cgspn.create_model("cgspn_demo_patch8")
first.save_pretrained({str(tmp_path)!r})
images = torch.randn(1, 3, 64, 64)
for weights in (
    dict(pretrained=True, pretrained_cfg_overlay=dict(file={str(tmp_path)!r})),
    dict(checkpoint_path={str(tmp_path / "model.safetensors")!r}),
):
    assert torch.equal(timm.create_model("cgspn_demo_patch8", **weights)(images), first(images))
try:
    timm.create_model("cgspn_demo_patch8", pretrained=True)
except ValueError as error:
    assert "no published weights of cgspn_demo_patch8" in str(error)
else:
    raise AssertionError
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_cgspn_does_not_import_timm():
    assert run("import sys, cgspn, cgspn.backbones; sys.exit('timm' in sys.modules)").returncode == 0


@BOTH_ORDERS
def test_registration_waits_for_the_import(tmp_path, imports):
    """With a package in timm's place that records what is registered: runs where timm does not."""
    (tmp_path / "timm" / "models").mkdir(parents=True)
    (tmp_path / "timm" / "__init__.py").write_text("from timm.models import names\n")
    (tmp_path / "timm" / "models" / "__init__.py").write_text(
        "names = []\ndef register_model(function):\n    names.append(function.__name__)\n"
    )
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
{imports}
assert timm.names == cgspn.list_models("cgspn_*"), timm.names
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
