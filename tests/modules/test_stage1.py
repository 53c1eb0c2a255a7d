import pytest
import torch

from cgspn.data import ImageFolderDataModule
from cgspn.losses import relative_error
from cgspn.modules import Stage1Distillation
from cgspn.registry import TEACHERS


@pytest.fixture
def stage1(tiny, teacher_node):
    def build(operator="cgspn", **arguments):
        module = Stage1Distillation(tiny.node(operator), teacher_node, **arguments)
        module.set_teacher(TEACHERS.build(teacher_node))
        module.initialise()
        return module

    return build


@pytest.mark.parametrize("operator", ["attention", "cgspn", "gspn", "gspn2"])
def test_only_operators_and_their_norms_train(stage1, tiny, operator):
    module = stage1(operator)
    trainable = {name for name, p in module.named_parameters() if p.requires_grad}
    parts = ("operator", "norm1")
    assert trainable == {
        f"encoder.{name}"
        for name, _ in module.encoder.named_parameters()
        if name.startswith("blocks.") and name.split(".")[2] in parts
    }
    module.training_step(tiny.batch(), 0).backward()
    assert all(p.grad is None for name, p in module.named_parameters() if name not in trainable)


@pytest.mark.parametrize("block", [0, 1, 2])
def test_no_gradient_crosses_blocks(stage1, tiny, block):
    module, images = stage1(), tiny.batch()["image"]
    module.block_errors(images, module.frozen_teacher.trace(images))[block].backward()
    touched = {name for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched
    prefix = f"encoder.blocks.{block}."
    assert all(name.startswith((f"{prefix}operator", f"{prefix}norm1")) for name in touched)


@pytest.mark.parametrize("first_input", ["student", "teacher"])
def test_every_block_compares_branches_on_the_teachers_input(stage1, tiny, first_input):
    module, images = stage1(first_input=first_input), tiny.batch()["image"]
    teacher = module.frozen_teacher.encoder
    x, expected = teacher.embed(images), []
    for i, (ours, theirs) in enumerate(zip(module.encoder.blocks, teacher.blocks, strict=True)):
        own = module.encoder.embed(images) if i == 0 and first_input == "student" else x
        # With its own embedding, block 0 also makes up for the positions that it lacks.
        expected.append(relative_error(ours.mix(own), x + theirs.mix(x) - own))
        x = theirs(x)
    errors = module.block_errors(images, module.frozen_teacher.trace(images))
    torch.testing.assert_close(torch.stack(errors), torch.stack(expected))
    torch.testing.assert_close(module.training_step(module_batch(images), 0), sum(expected))


def module_batch(images):
    return {"image": images}


def test_block_0_reads_the_embedding_it_will_meet(stage1, tiny):
    images = tiny.batch()["image"]
    own, given = (stage1(first_input=first_input) for first_input in ("student", "teacher"))
    given.encoder.load_state_dict(own.encoder.state_dict())
    seen = []
    for module in (own, given):
        handle = module.encoder.blocks[0].norm1.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
        module.block_errors(images, module.frozen_teacher.trace(images))
        handle.remove()
    teacher = own.frozen_teacher.encoder
    assert torch.equal(seen[0], teacher.patch_embed(images))
    assert torch.equal(seen[1], teacher.embed(images))
    assert not torch.equal(seen[0], seen[1])


def test_an_attention_student_starts_at_zero_error(stage1, tiny):
    images = tiny.batch()["image"]
    module = stage1("attention")
    errors = module.block_errors(images, module.frozen_teacher.trace(images))
    assert max(error.item() for error in errors) < 1e-10
    student, teacher = module(images), module.frozen_teacher.encode_image(images)
    torch.testing.assert_close(student.features, teacher.features)
    torch.testing.assert_close(student.summary, teacher.summary)


@pytest.mark.parametrize("operator", ["attention", "cgspn", "gspn", "gspn2"])
def test_overfits_one_batch(stage1, tiny, operator):
    module, batch = stage1(operator), tiny.batch()
    if operator == "attention":
        for block in module.encoder.blocks:
            torch.nn.init.normal_(block.operator.qkv.weight, std=0.3)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = module.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_run_logs_and_keeps_the_rest(tiny, teacher_node, teacher_path, tmp_path):
    module = Stage1Distillation(tiny.node("cgspn"), teacher_node, lr=1e-2)
    trainer = tiny.trainer(tmp_path)
    trainer.fit(module, tiny.data())
    names = trainer.callback_metrics.keys()
    assert {f"{p}/relative_error/block_{i}" for p in ("train", "val") for i in range(3)} <= names
    assert {"val/features_cosine", "val/summary_cosine", "val/retrieval/image_to_text_R@1"} <= names
    assert {"train/loss", "val/loss", "val/zero_shot/top1"} <= names
    weights = torch.load(teacher_path, weights_only=True)["state_dict"]
    for name, value in module.encoder.state_dict().items():
        frozen = not (name.startswith("blocks.") and name.split(".")[2] in ("operator", "norm1"))
        if frozen:
            assert torch.equal(value, weights[f"encoder.{name}"]), name
    for name, value in module.frozen_teacher.encoder.state_dict().items():
        assert torch.equal(value, weights[f"encoder.{name}"]), name


def test_images_without_texts(tiny, teacher_node, tmp_path):
    class Images(tiny.data):
        class_names = None

        def __init__(self):
            super().__init__()
            self.samples.batch = {"image": self.samples.batch["image"]}

    trainer = tiny.trainer(tmp_path)
    trainer.fit(Stage1Distillation(tiny.node("cgspn"), teacher_node), Images())
    assert not any("retrieval" in name or "zero_shot" in name for name in trainer.callback_metrics)
    assert "val/features_cosine" in trainer.callback_metrics


def test_weights_in_another_precision_are_refused(tiny, teacher_node, tmp_path):
    module = Stage1Distillation(tiny.node("cgspn"), teacher_node)
    with pytest.raises(
        ValueError, match=r"precision=bf16-true makes .* valid: 32-true, 16-mixed, bf16-mixed"
    ):
        tiny.trainer(tmp_path, precision="bf16-true").fit(module, tiny.data())


def test_data_in_another_normalisation_are_refused(tiny, teacher_node, tmp_path):
    data = ImageFolderDataModule(str(tmp_path), mean=(0.4, 0.4, 0.4), image_size=16)
    with pytest.raises(ValueError, match=r"mean=\(0\.4, 0\.4, 0\.4\).* expects mean=\(0\.5, 0\.5, 0\.5\)"):
        tiny.trainer(tmp_path).fit(Stage1Distillation(tiny.node("cgspn"), teacher_node), data)


def test_another_architecture_is_refused(tiny, teacher_node, tmp_path):
    module = Stage1Distillation(tiny.node("cgspn", embed_dim=8), teacher_node)
    with pytest.raises(ValueError, match=r"embed_dim=8, its teacher 16") as error:
        tiny.trainer(tmp_path).fit(module, tiny.data())
    assert "\n" not in str(error.value)


def test_unknown_first_input(stage1):
    with pytest.raises(ValueError, match=r"'own'. Valid: student, teacher"):
        stage1(first_input="own")
