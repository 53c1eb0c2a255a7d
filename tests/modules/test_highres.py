import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint

from cgspn.modules import HighResolution
from cgspn.modules.highres import resize_features
from cgspn.registry import TEACHERS


@pytest.fixture
def highres(tiny, teacher_node):
    def build(size, teacher=teacher_node, operator="cgspn", **arguments):
        module = HighResolution(tiny.node(operator, img_size=size), teacher, **arguments)
        module.set_teacher(TEACHERS.build(teacher))
        module.initialise()
        return module

    return build


def test_features_are_upsampled_bilinearly():
    ramp = torch.arange(4.0)[:, None] + 10 * torch.arange(4.0)
    resized = resize_features(ramp[None, ..., None], 6, 6)[0, ..., 0]
    centres = ((torch.arange(6) + 0.5) * 4 / 6 - 0.5).clamp(0, 3)
    torch.testing.assert_close(resized, centres[:, None] + 10 * centres)


@pytest.mark.parametrize("size", [16, 20, 24, 28], ids=lambda size: f"scale_{size / 16:g}")
def test_teacher_reads_the_same_crop_at_its_own_size(highres, tiny, size):
    module, images = highres(size), tiny.batch(size=size)["image"]
    trace = module.teacher_trace(images)
    small = images
    if size != 16:
        small = F.interpolate(images, (16, 16), mode="bicubic", antialias=True)
    own = module.frozen_teacher.trace(small, [0, 1, 2])
    grid = size // 4
    for i in range(3):
        for resized, native in ((trace.branches[i], own.branches[i]), (trace.outputs[i], own.outputs[i])):
            assert resized.shape == (6, grid, grid, 16)
            torch.testing.assert_close(resized, resize_features(native, grid, grid), rtol=1e-4, atol=1e-5)
    assert torch.allclose(trace.summary, own.summary, atol=1e-5)


def test_a_propagation_student_starts_where_its_teacher_stood(highres, tiny, tmp_path, teacher_node):
    first = HighResolution(tiny.node("cgspn", img_size=24), teacher_node)
    trainer = tiny.trainer(tmp_path, max_steps=2)
    trainer.fit(first, tiny.data(size=24))
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    second = highres(36, teacher={"type": "cgspn", "weights": str(tmp_path / "first.ckpt")})
    assert second.frozen_teacher.img_size == (24, 24)
    for name, value in first.encoder.state_dict().items():
        assert torch.equal(value, second.encoder.state_dict()[name]), name
    assert second.teacher_trace(tiny.batch(size=36)["image"]).branches[0].shape == (6, 9, 9, 16)
    assert second.text_encoder(["a boat"]).shape == (1, 16)


def test_two_steps_on_the_curriculum(tiny, teacher_node, tmp_path):
    teacher = teacher_node
    for size in (24, 28):
        module = HighResolution(tiny.node("cgspn", img_size=size), teacher, lr=1e-3)
        saver = ModelCheckpoint(tmp_path / str(size), save_last=True, every_n_train_steps=1)
        trainer = tiny.trainer(tmp_path, max_steps=4, callbacks=[saver], enable_checkpointing=True)
        trainer.fit(module, tiny.data(size=size))
        assert {
            "val/features_cosine",
            "val/summary_cosine",
            "train/pp_mse",
        } <= trainer.callback_metrics.keys()
        assert all(value.isfinite() for value in trainer.callback_metrics.values())
        teacher = {"type": "cgspn", "weights": str(tmp_path / str(size) / "last.ckpt")}


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((22, 22), "must be multiples of the patch, 4"),
        ((12, 12), "at least as large as the teacher's"),
        ((24, 16), "of the same aspect"),
    ],
    ids=["patch", "smaller", "aspect"],
)
def test_images_that_do_not_fit(highres, shape, message):
    with pytest.raises(ValueError, match=message):
        highres(24).teacher_images(torch.zeros(1, 3, *shape))
