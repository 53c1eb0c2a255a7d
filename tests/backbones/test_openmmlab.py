"""Encoders under the names that configs of OpenMMLab's frameworks give them."""

import subprocess
import sys

import mmengine
import pytest
import torch
from mmengine.registry import MODELS

import cgspn
from cgspn.registry import BACKBONES

SMALL = {"embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_dim": 32, "img_size": 16}


@pytest.mark.parametrize("registry", [MODELS, mmengine.Registry("models", scope="elsewhere", parent=MODELS)])
@pytest.mark.parametrize("name", ["cgspn_demo_patch8", "vit_demo_patch8"])
def test_outputs_are_the_encoders_feature_maps(registry, name):
    torch.manual_seed(0)
    backbone = registry.build({"type": f"cgspn.{name}", "out_indices": (0, -1), "norm": False, **SMALL})
    torch.manual_seed(0)
    encoder = cgspn.create_model(name, **SMALL)
    images = torch.randn(2, 3, 24, 17)
    expected = encoder.forward_intermediates(images, indices=[0, 2], intermediates_only=True)
    maps = backbone(images)
    assert isinstance(maps, tuple)
    assert [m.shape for m in maps] == [(2, 16, 3, 3)] * 2
    for a, b in zip(maps, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", BACKBONES.names())
def test_every_backbone_has_a_name(name):
    assert MODELS.get(f"cgspn.{name}").__name__ == name


def test_a_backbone_that_was_added_later_has_one_too():
    assert MODELS.get("cgspn.raw_patches") is not None
    BACKBONES.register_preset("added_later", BACKBONES.find("raw_patches"), patch_size=4)
    try:
        assert MODELS.build({"type": "cgspn.added_later"})(torch.randn(1, 3, 8, 8))[0].shape == (1, 48, 2, 2)
    finally:
        del BACKBONES.module_dict["added_later"]


def test_what_does_not_reach_the_outputs_is_frozen():
    backbone = MODELS.build({"type": "cgspn.cgspn_demo_patch8", "out_indices": [1], **SMALL}).train()
    sum(m.square().mean() for m in backbone(torch.randn(1, 3, 16, 16))).backward()
    trained = {name for name, p in backbone.encoder.named_parameters() if p.requires_grad}
    assert {name for name, p in backbone.encoder.named_parameters() if p.grad is not None} == trained
    assert not any(name.startswith(("blocks.2", "head")) for name in trained)


def test_a_frozen_encoder_stays_in_evaluation_mode(tmp_path):
    cgspn.create_model("cgspn_demo_patch8", drop_path_rate=0.9, **SMALL).save_pretrained(tmp_path)
    node = {"type": "cgspn.cgspn_demo_patch8", "pretrained": str(tmp_path), "frozen": True, **SMALL}
    backbone = MODELS.build(node).train()
    assert not any(m.training for m in backbone.encoder.modules())
    assert not any(p.requires_grad for p in backbone.parameters())
    encoder = cgspn.VisionEncoder.from_pretrained(tmp_path)
    images = torch.randn(1, 3, 16, 16)
    assert torch.equal(backbone(images)[0], encoder.forward_features(images).permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"type": "cgspn.cgspn_dmo_patch8"}, "Unknown backbone 'cgspn_dmo_patch8'; did you mean 'cgspn_demo"),
        ({"type": "cgspn.cgspn_demo_patch8", "dept": 3}, "Unknown argument of cgspn_demo_patch8 'dept'"),
        ({"type": "cgspn.cgspn_demo_patch8", "out_indices": [4]}, "out_indices names block 4; valid: -4 to"),
        ({"type": "cgspn.cgspn_demo_patch8", "out_indices": 3}, "out_indices=3 must be a list of blocks"),
        ({"type": "cgspn.cgspn_demo_patch8", "pretrained": "no/such"}, "There is no pretrained encoder no"),
    ],
)
def test_errors_name_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(arguments)


def test_a_config_needs_no_import_of_cgspn():
    code = (
        "import sys; from mmengine.registry import MODELS; assert 'cgspn.registry' not in sys.modules\n"
        "print(type(MODELS.build({'type': 'cgspn.cgspn_demo_patch8', 'depth': 1})).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1:] == ["FeatureMaps"], done.stderr
