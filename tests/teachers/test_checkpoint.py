import pytest
import torch
from lightning.pytorch import Trainer

from cgspn.modules import ContrastivePretraining, Stage2Contrastive
from cgspn.registry import TEACHERS

TEXT = dict(width=16, depth=1, num_heads=2, num_buckets=64, context_length=8)
NODE = dict(type="vision_encoder", img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, mlp_dim=24)


def save(module, path):
    """Writes the checkpoint that a trainer would write."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path, weights_only=True)
    return str(path)


@pytest.fixture
def pretrained():
    return ContrastivePretraining(NODE, TEXT, contrastive="sigmoid")


@pytest.fixture
def weights(pretrained, tmp_path):
    return save(pretrained, tmp_path / "teacher.ckpt")


def test_equals_the_model_it_was(pretrained, weights):
    teacher = TEACHERS.build({"type": "cgspn", "weights": weights})
    images, texts = torch.randn(2, 3, 16, 16), ["a boat", "snow"]
    pretrained.eval()
    with torch.no_grad():
        expected = pretrained.encoder.encode(images)
        text = pretrained.text.encode(texts)
    output = teacher.encode_image(images)
    assert torch.equal(output.summary, expected.summary)
    assert torch.equal(output.features, expected.features)
    assert torch.equal(teacher.encode_text(texts), text)
    assert teacher.logit_scale == pytest.approx(pretrained.logit_scale.item())
    assert teacher.logit_bias == -10
    assert teacher.img_size == (16, 16)
    assert teacher.mean == pretrained.encoder.mean


def test_stays_frozen(weights):
    teacher = TEACHERS.build({"type": "cgspn", "weights": weights}).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    trace = teacher.trace(torch.randn(1, 3, 16, 16, requires_grad=True), [0])
    assert not trace.outputs[0].requires_grad
    assert not teacher.encode_text(["a"]).requires_grad


def test_taps_are_where_they_belong(weights):
    teacher = TEACHERS.build({"type": "cgspn", "weights": weights})
    images = torch.randn(2, 3, 16, 16)
    trace = teacher.trace(images, [1])
    with torch.no_grad():
        x = teacher.encoder.blocks[0](teacher.encoder.embed(images))
        block = teacher.encoder.blocks[1]
        branch = block.operator(block.norm1(x))
    assert set(trace.inputs) == set(trace.branches) == set(trace.outputs) == {1}
    torch.testing.assert_close(trace.inputs[1], x)
    torch.testing.assert_close(trace.branches[1], branch)
    torch.testing.assert_close(trace.outputs[1], x + branch + block.mlp(block.norm2(x + branch)))


@pytest.mark.parametrize("train_text", [False, True], ids=["frozen_text", "trained_text"])
def test_a_student_teaches_with_its_own_or_its_teachers_text_tower(pretrained, weights, tmp_path, train_text):
    node = {"type": "cgspn", "weights": weights}
    student = Stage2Contrastive(NODE | {"operator": {"type": "cgspn"}}, node, train_text=train_text)
    student.set_teacher(TEACHERS.build(node))
    if train_text:
        torch.nn.init.normal_(student.text.proj.weight)
    path = save(student, tmp_path / "student.ckpt")
    teacher = TEACHERS.build({"type": "cgspn", "weights": path})
    text = (student if train_text else pretrained).text
    with torch.no_grad():
        assert torch.equal(teacher.encode_text(["a boat"]), text.eval().encode(["a boat"]))
    for name, value in teacher.encoder.state_dict().items():
        assert torch.equal(value, student.encoder.state_dict()[name]), name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no weight file"),
        (b"not a checkpoint", "not a readable checkpoint"),
        ({"state_dict": {}}, "has no hyperparameters"),
        ({"state_dict": {}, "hyper_parameters": {"lr": 1.0}}, "does not say what its part 'encoder' is"),
        ({"state_dict": {}, "hyper_parameters": {"encoder": NODE}}, "no part 'encoder'; valid: none"),
    ],
    ids=["missing", "garbage", "weights_only", "no_encoder", "no_weights"],
)
def test_bad_checkpoints(tmp_path, content, message):
    path = tmp_path / "bad.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message) as error:
        TEACHERS.build({"type": "cgspn", "weights": str(path)})
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("texts", ["a cat", [], [None], [3], None], ids=repr)
def test_texts_are_a_list_of_strings(weights, texts):
    with pytest.raises(ValueError, match="texts must be a list of strings, at least one, got"):
        TEACHERS.build({"type": "cgspn", "weights": str(weights)}).encode_text(texts)


def test_no_text_tower(weights, tmp_path):
    content = torch.load(weights, weights_only=True)
    del content["hyper_parameters"]["text"]
    torch.save(content, tmp_path / "vision.ckpt")
    teacher = TEACHERS.build({"type": "cgspn", "weights": str(tmp_path / "vision.ckpt")})
    assert teacher.text is None
    with pytest.raises(ValueError, match="no text tower"):
        teacher.encode_text(["a"])
