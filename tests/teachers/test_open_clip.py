"""Teachers from OpenCLIP against the library's own forward."""

import json

import pytest
import torch
from safetensors.torch import save_file

from cgspn.backbones import VisionEncoder
from cgspn.backbones.weights import init_from_teacher
from cgspn.registry import TEACHERS

open_clip = pytest.importorskip("open_clip")

VISION = dict(image_size=16, patch_size=4, width=32, layers=3, head_width=8, mlp_ratio=1.5)
TEXT = dict(context_length=12, width=32, heads=2, layers=2)
CLIP = dict(embed_dim=24, vision_cfg=VISION, text_cfg=TEXT | dict(vocab_size=49408))
KINDS = {
    "clip": CLIP,
    "quick_gelu": CLIP | dict(quick_gelu=True),
    "mean_pooled": CLIP | dict(vision_cfg=VISION | dict(pool_type="avg", ls_init_value=0.5)),
    "siglip": dict(embed_dim=32, init_logit_bias=-10, custom_text=True),
    "timm_projected": dict(embed_dim=24, custom_text=True),
}
SIZES = [(16, 16), (24, 20)]

every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, timm_folder, siglip_words):
    """Writes a small model and returns its folder."""
    written = {}

    def write(kind):
        if kind in written:
            return written[kind]
        torch.manual_seed(0)
        path, config = tmp_path_factory.mktemp(kind), dict(KINDS[kind])
        if "vision_cfg" not in config:
            pool = dict(timm_pool="map", timm_proj="none") if kind == "siglip" else dict(timm_proj="linear")
            trunk = "siglip" if kind == "siglip" else "plain"
            config["vision_cfg"] = (
                dict(image_size=16, timm_model_name=f"local-dir:{timm_folder(trunk)}", timm_pool="token")
                | pool
            )
            words = dict(vocab_size=64, hf_tokenizer_name="its own", pool_type="last", no_causal_mask=True)
            config["text_cfg"] = TEXT | words | dict(proj_bias=True)
            siglip_words().save_pretrained(path)
        arguments = json.loads(json.dumps(config))
        custom = arguments.pop("custom_text", False)
        model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**arguments)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not name.startswith("logit"):
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        save_file(model.state_dict(), path / "open_clip_model.safetensors")
        content = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}}
        (path / "open_clip_config.json").write_text(json.dumps(content))
        written[kind] = path
        return path

    return write


def build(path):
    return TEACHERS.build({"type": "open_clip", "name": f"local-dir:{path}"})


@every_kind
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_features_and_taps_are_the_librarys(folder, kind, size):
    path, images = folder(kind), torch.randn(2, 3, *size)
    model = open_clip.create_model(f"local-dir:{path}", force_image_size=size).eval()
    timm_trunk = hasattr(model.visual, "trunk")
    with torch.no_grad():
        summary = model.encode_image(images)
        if timm_trunk:
            outputs = model.visual.trunk.forward_intermediates(images, output_fmt="NLC")[1]
            norm = model.visual.trunk.norm
        else:
            found = model.visual.forward_intermediates(images, output_fmt="NLC")
            outputs, norm = found["image_intermediates"], model.visual.ln_post
        features = norm(outputs[-1])
    trace = build(path).trace(images)
    torch.testing.assert_close(trace.summary, summary, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(trace.features.flatten(1, 2), features, rtol=1e-5, atol=1e-5)
    for i, output in enumerate(outputs):
        torch.testing.assert_close(trace.outputs[i].flatten(1, 2), output, rtol=1e-5, atol=1e-5)


@every_kind
def test_text_embeddings_are_the_librarys(folder, kind):
    path, texts = folder(kind), ["A cat.", "dog", "a caption of many words that is cut off at the end"]
    model = open_clip.create_model(f"local-dir:{path}").eval()
    teacher = build(path)
    with torch.no_grad():
        expected = model.encode_text(open_clip.get_tokenizer(f"local-dir:{path}")(texts))
    found = teacher.encode_text(texts)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found[0] - found[1]).abs().max() > 0.01
    assert teacher.logit_scale == pytest.approx(model.logit_scale.item())
    assert (teacher.logit_bias is None) == (kind != "siglip")
    assert (teacher.mean, teacher.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert not any("visual" in name or "logit" in name for name, _ in teacher.text.named_parameters())


@every_kind
def test_an_attention_student_reproduces_its_teacher(folder, kind):
    source = build(folder(kind)).encoder
    student = VisionEncoder(**source.config).eval()
    report = init_from_teacher(student, source)
    assert not report.kept
    assert not report.unused
    images = torch.randn(2, 3, 20, 24)
    with torch.no_grad():
        for ours, theirs in zip(student.encode(images), source.encode(images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_file_is_normalised_like_the_names_published_weights():
    from cgspn.teachers.open_clip_models import normalisation

    class Model:
        class visual:
            image_mean, image_std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD

    half = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert normalisation(open_clip, Model, "ViT-SO400M-14-SigLIP2-378", "file.safetensors") == half
    found = normalisation(open_clip, Model, "ViT-L-14", "file.safetensors")
    assert found == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            dict(name="ViT-B-33", weights="openai"),
            "Unknown OpenCLIP model 'ViT-B-33'; did you mean 'ViT-B",
        ),
        (dict(name="ViT-B-32"), "ViT-B-32: no weights are given; valid: a file or one of the tags openai"),
        (
            dict(name="ViT-B-32", weights="/nowhere"),
            "there is no file or tag /nowhere; valid: a file or one",
        ),
        (
            dict(name="ViT-B-16", weights="openai"),
            "need another activation: name ViT-B-16-quickgelu",
        ),
        (dict(name="ViT-B-32-quickgelu", weights="laion2b_e16"), "no file or tag laion2b_e16"),
        (dict(name="local-dir:/nowhere"), "There is no folder /nowhere"),
        (dict(name="hf-hub:a/b", weights="openai"), "holds its own weights; leave out weights='openai'"),
    ],
    ids=["name", "no_weights", "file", "activation", "another_tag", "folder", "both"],
)
def test_what_does_not_exist(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        TEACHERS.build({"type": "open_clip", **arguments})
    assert "\n" not in str(error.value)


def test_broken_weights(folder, tmp_path):
    for file in folder("clip").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="OpenCLIP cannot load local-dir:") as error:
        build(tmp_path)
    assert "\n" not in str(error.value)
