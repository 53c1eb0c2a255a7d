import pytest
import safetensors.torch
import torch

from cgspn.backbones.weights import init_from_teacher, load_part, load_weights
from cgspn.registry import BACKBONES

TINY = {
    "type": "vision_encoder",
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
}


def build(**arguments):
    return BACKBONES.build({**TINY, **arguments})


@pytest.fixture(params=["last.ckpt", "model.safetensors"])
def checkpoint(request, tmp_path):
    encoder, path = build(), tmp_path / request.param
    tensors = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    tensors["logit_scale"] = torch.ones(())
    if path.suffix == ".ckpt":
        torch.save({"state_dict": tensors, "epoch": 3}, path)
    else:
        safetensors.torch.save_file(tensors, path)
    return encoder, path


def test_load_part_gives_back_what_was_saved(checkpoint):
    encoder, path = checkpoint
    other, images = build(), torch.randn(2, 3, 16, 16)
    load_weights(other, load_part(path, "encoder"), path)
    torch.testing.assert_close(other(images), encoder(images), rtol=0, atol=0)
    assert "logit_scale" in load_part(path)


def test_load_part_names_the_parts_there_are(checkpoint):
    with pytest.raises(ValueError, match=r"no part 'text'; valid: encoder, logit_scale\.$"):
        load_part(checkpoint[1], "text")


@pytest.mark.parametrize("name", ["absent.ckpt", "absent.safetensors"])
def test_load_part_names_a_missing_file(tmp_path, name):
    with pytest.raises(ValueError, match=f"no weight file .*{name}"):
        load_part(tmp_path / name)


@pytest.mark.parametrize("name", ["broken.ckpt", "broken.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all"])
def test_load_part_refuses_an_unreadable_file_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is not a readable checkpoint") as error:
        load_part(tmp_path / name)
    assert "\n" not in str(error.value)


def test_load_part_never_runs_pickled_code(tmp_path):
    torch.save({"state_dict": {}, "payload": pytest.raises}, tmp_path / "code.ckpt")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load_part(tmp_path / "code.ckpt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(embed_dim=32), r"a\.ckpt has patch_embed\.weight \(16, 3, 4, 4\), the model \(32, 3, 4, 4\)"),
        (dict(depth=3), r"a\.ckpt lacks blocks\.2\.norm1\.weight \(16,\)"),
        (dict(depth=1), r"a\.ckpt has blocks\.1\.norm1\.weight \(16,\), which the model lacks"),
    ],
    ids=["width", "deeper", "shallower"],
)
def test_another_model_is_refused_by_its_first_tensor_and_nothing_is_loaded(arguments, message):
    other = build(**arguments)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError, match=message) as error:
        load_weights(other, build().state_dict(), "a.ckpt")
    assert "\n" not in str(error.value)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_positions_are_resampled_to_the_models_grid():
    small, large = build(), build(img_size=(24, 20))
    load_weights(large, small.state_dict())
    images = torch.randn(1, 3, 24, 20)
    torch.testing.assert_close(large(images), small(images))


def test_positions_of_a_larger_student_start_from_its_teachers():
    teacher, student = build(), build(img_size=(24, 20))
    report = init_from_teacher(student, teacher)
    assert not report.kept
    images = torch.randn(1, 3, 24, 20)
    torch.testing.assert_close(student(images), teacher(images))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_heads=4), "num_heads=4, its teacher 2"),
        (dict(mlp_dim=40), r"mlp_dim=40, its teacher \d+"),
        (dict(pos_resampling="bicubic"), "pos_resampling=bicubic, its teacher bicubic_antialias"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_no_twin(changes, message):
    with pytest.raises(ValueError, match=f"The student has {message}; set the student's to the teacher's"):
        init_from_teacher(build(**changes), build())


def test_attention_student_reproduces_its_teacher_exactly():
    arguments = dict(
        activation="quick_gelu", norm_eps=1e-5, pre_norm=True, layer_scale=0.1, swiglu=True, num_classes=3
    )
    teacher, student = build(**arguments), build(**arguments)
    for parameter in teacher.parameters():
        parameter.data.normal_(std=0.3)
    report = init_from_teacher(student, teacher)
    assert not report.kept
    assert not report.unused
    images = torch.randn(2, 3, 16, 24)
    assert torch.equal(student.forward_features(images), teacher.forward_features(images))
    assert torch.equal(student(images), teacher(images))


def test_a_propagation_student_keeps_its_operators_and_their_norms():
    teacher, student = build(), build(operator={"type": "cgspn"})
    for parameter in teacher.parameters():
        parameter.data.normal_(std=0.3)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    report = init_from_teacher(student, teacher)
    own = {name for name in before if ".operator." in name or ".norm1." in name}
    assert set(report.kept) == own
    assert set(report.copied) == before.keys() - own
    assert "pos_embed.weight" in report.unused
    counts = f"{len(report.copied)} tensors copied from the teacher, {len(own)} kept, {len(report.unused)} of"
    assert str(report).startswith(counts)
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, before[name] if name in own else teacher.state_dict()[name])


def test_a_hybrid_student_takes_over_the_attention_it_shares():
    teacher, student = build(), build(operator={"type": "cgspn"}, attention_at=[1])
    report = init_from_teacher(student, teacher)
    assert "blocks.1.operator.qkv.weight" in report.copied
    assert "blocks.1.norm1.weight" in report.copied
    assert "blocks.0.norm1.weight" in report.kept


@pytest.mark.parametrize(
    "arguments",
    [
        dict(embed_dim=32),
        dict(depth=3),
        dict(patch_size=8),
        dict(activation="gelu"),
        dict(norm_eps=1e-5),
        dict(pre_norm=True),
        dict(layer_scale=0.1),
        dict(swiglu=True),
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_a_student_that_is_no_twin_is_refused(arguments):
    with pytest.raises(ValueError, match=f"The student has {next(iter(arguments))}="):
        init_from_teacher(build(**arguments), build())
