import json
import shutil

import pytest
import torch
from PIL import Image

import cgspn
from cgspn.registry import BACKBONES

SMALL = {"embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32, "img_size": 16, "patch_size": 8}


def small(name="cgspn_demo_patch8", **overrides):
    encoder = cgspn.create_model(name, **{**SMALL, **overrides})
    for parameter in encoder.parameters():  # So that no part stays at a value that hides a mistake.
        torch.nn.init.normal_(parameter, std=0.2)
    return encoder.eval()


def assert_identical(a, b):
    assert a.state_dict().keys() == b.state_dict().keys()
    for name, tensor in a.state_dict().items():
        assert tensor.dtype == b.state_dict()[name].dtype
        assert torch.equal(tensor, b.state_dict()[name]), name
    images = torch.randn(2, 3, 16, 24, dtype=next(a.parameters()).dtype)
    assert torch.equal(a(images), b(images))


@pytest.fixture
def checkpoint(tmp_path):
    """A run folder with a checkpoint as training writes it: adapters and a text tower beside the encoder."""
    encoder = small("vision_encoder", operator={"type": "cgspn"})
    state = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    state |= {"adapters.0.weight": torch.ones(2), "text.weight": torch.ones(2)}
    hyperparameters = {"student": {"type": "vision_encoder", **SMALL, "operator": {"type": "cgspn"}}}
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": state, "hyper_parameters": hyperparameters}, path)
    return encoder, path


def test_list_models():
    assert cgspn.list_models("*so400m*") == ["cgspn_so400m_patch14", "vit_so400m_patch14"]
    assert cgspn.list_models() == BACKBONES.names()
    assert cgspn.list_models("*nothing*") == []


@pytest.mark.parametrize("name", ["demo_patch8", "tiny_patch16"])
@pytest.mark.parametrize("kind", ["vit", "cgspn"])
def test_create_model_is_the_preset(kind, name):
    encoder = cgspn.create_model(f"{kind}_{name}")
    twin = BACKBONES.build({"type": f"{kind}_{name}"})
    assert encoder.config == twin.config
    assert cgspn.create_model(f"{kind}_{name}", depth=1, operator="gspn2").blocks[0].operator.up is not None


def test_unknown_names_and_arguments():
    with pytest.raises(
        ValueError, match="Unknown backbone 'cgspn_dmo_patch8'; did you mean 'cgspn_demo_patch8'"
    ):
        cgspn.create_model("cgspn_dmo_patch8")
    with pytest.raises(
        ValueError, match="Unknown argument of cgspn_demo_patch8 'dept'; did you mean 'depth'"
    ):
        cgspn.create_model("cgspn_demo_patch8", dept=3)
    with pytest.raises(ValueError, match=r"depth: expected int, got 'deep'\.$"):
        cgspn.create_model("cgspn_demo_patch8", depth="deep")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"operator": {"type": "attention"}, "num_classes": 5},
        {"operator": {"type": "gspn", "expansion": 1}, "attention_at": [1], "head": {"type": "avg"}},
        {"img_size": (16, 24), "mean": (0.1, 0.2, 0.3), "layer_scale": 0.5, "swiglu": True, "pre_norm": True},
    ],
    ids=lambda value: "-".join(value) or "plain",
)
def test_round_trip_is_exact(tmp_path, overrides, dtype):
    encoder = small(**overrides).to(dtype)
    encoder.save_pretrained(tmp_path / "model")
    again = cgspn.VisionEncoder.from_pretrained(tmp_path / "model")
    assert not again.training
    assert_identical(encoder, again)
    assert again.transform == encoder.transform
    again.save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "model" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_others_may_read_the_files(tmp_path):
    small().save_pretrained(tmp_path)
    (tmp_path / "usual").touch()
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {(tmp_path / "usual").stat().st_mode}


def test_round_trip_keeps_mixed_dtypes(tmp_path):
    encoder = small()
    encoder.blocks.bfloat16()
    encoder.save_pretrained(tmp_path)
    again = cgspn.VisionEncoder.from_pretrained(tmp_path)
    assert {n: p.dtype for n, p in again.named_parameters()} == {
        n: p.dtype for n, p in encoder.named_parameters()
    }


def test_round_trip_after_a_new_classifier(tmp_path):
    encoder = small()
    encoder.reset_classifier(7)
    encoder.save_pretrained(tmp_path)
    assert_identical(encoder, cgspn.VisionEncoder.from_pretrained(tmp_path))


def test_a_checkpoint_and_its_run_folder(checkpoint):
    encoder, path = checkpoint
    for source in (path, str(path), path.parents[1]):
        assert_identical(encoder, cgspn.VisionEncoder.from_pretrained(source))
    assert_identical(encoder, cgspn.create_model("cgspn_demo_patch8", path, **SMALL))


def test_create_model_takes_image_statistics_from_the_weights(tmp_path):
    encoder = small(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    encoder.save_pretrained(tmp_path)
    again = cgspn.create_model("cgspn_demo_patch8", tmp_path, **SMALL)
    assert again.transform == ((16, 16), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert cgspn.create_model("cgspn_demo_patch8", tmp_path, **SMALL, mean=(0, 0, 0)).mean == (0, 0, 0)


def test_create_model_with_another_classifier_or_size(tmp_path):
    encoder = small("vit_demo_patch8", num_classes=3)
    encoder.save_pretrained(tmp_path)
    images = torch.randn(1, 3, 32, 32)
    for num_classes in (0, 3, 5):
        again = cgspn.create_model("vit_demo_patch8", tmp_path, **SMALL, num_classes=num_classes)
        torch.testing.assert_close(again.encode(images), encoder.encode(images), rtol=0, atol=0)
        assert again(images).shape == (1, num_classes or 16)
    larger = cgspn.create_model("vit_demo_patch8", tmp_path, **{**SMALL, "img_size": 32})
    assert larger.pos_embed.weight.shape == (1, 4, 4, 16)


def test_create_model_refuses_weights_of_another_model(tmp_path):
    small(operator={"type": "cgspn", "gates": "sigmoid"}).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"has operator=.*sigmoid.* it belongs to another model; give operator="
    ):
        cgspn.create_model("cgspn_demo_patch8", tmp_path, **SMALL)
    with pytest.raises(
        ValueError, match=r"has embed_dim=16, cgspn_demo_patch8 has 128: it belongs to another"
    ):
        cgspn.create_model("cgspn_demo_patch8", tmp_path)
    with pytest.raises(ValueError, match=r"holds a vision_encoder, which is no raw_patches"):
        cgspn.create_model("raw_patches", tmp_path)


@pytest.mark.parametrize("pretrained", [True, False, 3, ""])
def test_pretrained_is_a_path(pretrained):
    with pytest.raises(ValueError, match=f"^pretrained={pretrained!r}: no weights are published; give a fol"):
        cgspn.create_model("cgspn_demo_patch8", pretrained, **SMALL)


def test_readable_errors(tmp_path, checkpoint):
    load = cgspn.VisionEncoder.from_pretrained
    with pytest.raises(ValueError, match=r"no pretrained encoder .*nothing; give a folder, a run or"):
        load(tmp_path / "nothing")
    with pytest.raises(
        ValueError, match=r"holds neither config.json with model.safetensors nor checkpoints/last"
    ):
        load(tmp_path)
    small().save_pretrained(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    for content, message in [
        ("{", "config.json is not valid JSON"),
        ("[]", "does not describe an encoder of cgspn"),
        (json.dumps({"encoder": {"type": "vison_encoder"}}), "did you mean 'vision_encoder'"),
        (
            json.dumps({"encoder": {**config["encoder"], "dept": 1}}),
            "Unknown argument of vision_encoder 'dept'",
        ),
        (json.dumps({"encoder": {**config["encoder"], "depth": 3}}), r"model.safetensors lacks blocks.2"),
        (
            json.dumps({"encoder": {**config["encoder"], "mlp_dim": 8}}),
            r"has blocks.0.mlp.fc1.weight \(32, 16\)",
        ),
    ]:
        (tmp_path / "a" / "config.json").write_text(content)
        with pytest.raises(ValueError, match=message) as error:
            load(tmp_path / "a")
        assert "\n" not in str(error.value)
    small().save_pretrained(tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        load(tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="There is no weight file"):
        load(tmp_path / "b")
    with pytest.raises(ValueError, match=r"does not say what its part 'teacher' is"):
        load(checkpoint[1], part="teacher")
    with pytest.raises(ValueError, match=r"x.ckpt is not a readable checkpoint: it is damaged"):
        load(shutil.copy(tmp_path / "a" / "config.json", tmp_path / "x.ckpt"))


def test_a_class_that_is_not_registered_is_not_saved(tmp_path):
    class Private(cgspn.VisionEncoder):
        pass

    with pytest.raises(ValueError, match="Private is not a registered backbone"):
        Private(**SMALL).save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_transform_makes_the_input():
    encoder = small(img_size=(16, 24))
    image = cgspn.ImageTransform(*encoder.transform)(Image.new("RGB", (50, 30), "white"))
    assert image.shape == (3, 16, 24)
    assert torch.equal(image, torch.ones(3, 16, 24))


def test_package_names():
    assert set(cgspn.__all__) <= set(dir(cgspn))
    assert all(getattr(cgspn, name) is not None for name in cgspn.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'creat_model'"):
        _ = cgspn.creat_model
