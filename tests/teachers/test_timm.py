"""Teachers from timm against the library's own forward."""

import pytest
import torch

from cgspn.backbones import VisionEncoder
from cgspn.backbones.weights import init_from_teacher
from cgspn.registry import TEACHERS

timm = pytest.importorskip("timm")

KINDS = ["plain", "mean_pooled", "siglip", "clip", "registers", "swiglu", "not_square"]
SIZES = [(16, 16), (24, 20), (12, 28)]

every_kind = pytest.mark.parametrize("kind", KINDS)
every_size = pytest.mark.parametrize(("height", "width"), SIZES, ids=[f"{h}x{w}" for h, w in SIZES])


def build(folder):
    return TEACHERS.build({"type": "timm", "name": f"local-dir:{folder}"})


@every_kind
@every_size
def test_features_and_taps_are_the_librarys(timm_folder, kind, height, width):
    folder, images = timm_folder(kind), torch.randn(2, 3, height, width)
    model = timm.create_model(
        f"local-dir:{folder}", pretrained=True, num_classes=0, dynamic_img_size=True
    ).eval()
    with torch.no_grad():
        summary = model(images)
        final, outputs = model.forward_intermediates(images, output_fmt="NLC")
    trace = build(folder).trace(images)
    torch.testing.assert_close(trace.summary, summary, rtol=1e-5, atol=1e-5)
    features = final[:, model.num_prefix_tokens :]
    torch.testing.assert_close(trace.features.flatten(1, 2), features, rtol=1e-5, atol=1e-5)
    for i, output in enumerate(outputs):
        torch.testing.assert_close(trace.outputs[i].flatten(1, 2), output, rtol=1e-5, atol=1e-5)
    assert features.std() > 0.1


@every_kind
def test_an_attention_student_reproduces_its_teacher(timm_folder, kind):
    source = build(timm_folder(kind)).encoder
    student = VisionEncoder(**source.config).eval()
    report = init_from_teacher(student, source)
    assert not report.kept
    assert not report.unused
    images = torch.randn(2, 3, 20, 24)
    with torch.no_grad():
        for ours, theirs in zip(student.encode(images), source.encode(images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_weight_file_of_a_named_model(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    teacher = TEACHERS.build(
        {"type": "timm", "name": "vit_tiny_patch16_224", "weights": str(tmp_path / "weights.pth")}
    )
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = model.eval()(images)
    torch.testing.assert_close(teacher.encode_image(images).summary, expected, rtol=1e-5, atol=1e-5)
    assert teacher.mean == (0.5, 0.5, 0.5)
    assert teacher.text is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(qk_norm=True), "must have attention without norms"),
        (dict(global_pool="avg", fc_norm=True), "must have layer norms"),
        (dict(global_pool="max", fc_norm=False), "must have pooling by token avg or map"),
        (dict(act_layer="mish"), "has the activation Mish; valid: gelu, gelu_tanh"),
    ],
    ids=["qk_norm", "fc_norm", "max", "activation"],
)
def test_what_no_encoder_of_ours_can_be(timm_folder, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        build(timm_folder("plain", **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            dict(name="vit_tiny_patch16_244"),
            "Unknown timm model 'vit_tiny_patch16_244'; .*vit_tiny_patch16_224",
        ),
        (dict(name="resnet18", weights="/nowhere.pth"), "There is no weight file /nowhere.pth"),
        (dict(name="local-dir:/nowhere"), "There is no folder /nowhere with timm's config.json"),
    ],
    ids=["name", "file", "folder"],
)
def test_what_does_not_exist(arguments, message):
    with pytest.raises(ValueError, match=message):
        TEACHERS.build({"type": "timm", **arguments})


def test_the_reason_is_named(timm_folder, tmp_path):
    file = timm_folder("plain") / "config.json"
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"timm cannot load local-dir:.*: 'architecture' is missing"):
        TEACHERS.build({"type": "timm", "name": f"local-dir:{tmp_path}"})
    weights = str(file.with_name("model.safetensors"))
    with pytest.raises(ValueError, match=r"Error\(s\) in loading state_dict for VisionTransformer: \w"):
        TEACHERS.build({"type": "timm", "name": "vit_tiny_patch16_224", "weights": weights})


def test_another_kind_of_model(tmp_path):
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="resnet18 is a ResNet; valid: timm's VisionTransformer"):
        TEACHERS.build({"type": "timm", "name": "resnet18", "weights": str(tmp_path / "weights.pth")})
