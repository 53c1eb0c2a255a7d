import math
import os

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint

from cgspn.losses import caption_keys, channel_kl, info_nce
from cgspn.modules import InitFrom, Stage2Contrastive, TapConfig
from cgspn.registry import TEACHERS


@pytest.fixture
def stage2(tiny, teacher_node):
    def build(operator="cgspn", **arguments):
        module = Stage2Contrastive(tiny.node(operator), teacher_node, **arguments)
        module.set_teacher(TEACHERS.build(teacher_node))
        module.initialise()
        return module

    return build


def terms(module, batch):
    student, teacher = module.traces(batch["image"])
    return module.losses(batch, student, teacher, module.embed_captions(batch))


def test_loss_equals_the_formula(stage2, tiny):
    taps = TapConfig(pp=0.7, pb=1.3, kl=0.2, temperature=2.0, blocks=[0, -1])
    module, batch = stage2(taps=taps, contrastive_weight=0.5), tiny.batch()
    teacher = module.frozen_teacher
    with torch.no_grad():
        ours, theirs = module.encoder.embed(batch["image"]), teacher.encoder.embed(batch["image"])
        sums = {"pp": [], "pb": []}
        for i in range(3):
            branches = module.encoder.blocks[i].mix(ours), teacher.encoder.blocks[i].mix(theirs)
            ours, theirs = module.encoder.blocks[i](ours), teacher.encoder.blocks[i](theirs)
            for kind, (s, t) in (("pp", branches), ("pb", (ours, theirs))):
                flat = t.flatten(0, -2)
                mean, std = flat.mean(0), flat.std(0, correction=0)
                # The untrained teacher's branches are a hundredth of their stream: the floor decides.
                std = std.maximum(0.1 * theirs.flatten(0, -2).std(0, correction=0))
                s, t = (s - mean) / std, (t - mean) / std
                if i in (0, 2):
                    sums[kind].append(F.mse_loss(s, t) + 0.2 * channel_kl(s, t, 2.0))
        summary = module.encoder.head(module.encoder.norm(ours))
        contrastive = info_nce(
            summary,
            teacher.encode_text(batch["text"]),
            caption_keys(batch["text"]),
            torch.tensor(teacher.logit_scale).exp(),
        )
        expected = 0.7 * sum(sums["pp"]) / 2 + 1.3 * sum(sums["pb"]) / 2 + 0.5 * contrastive
    torch.testing.assert_close(terms(module, batch)["loss"].detach(), expected, rtol=1e-3, atol=1e-5)


def test_an_attention_student_starts_at_the_teacher(stage2, tiny):
    losses = terms(stage2("attention"), tiny.batch())
    for name in ("pp_mse", "pp_kl", "pb_mse", "pb_kl"):
        assert losses[name] < 1e-9


def test_taps_stay_gentle_where_the_teachers_branches_are_small(stage2, tiny):
    module = stage2(taps=TapConfig(pb=0.0), contrastive_weight=0.0)
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1e-3)
    history = []
    for seed in range(6):
        optimizer.zero_grad()
        loss = terms(module, tiny.batch(seed=seed))["loss"]
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    # In units of the branches alone, the same steps end in NaN.
    assert max(history) <= 2 * history[0]


@pytest.mark.parametrize("contrastive", ["info_nce", "sigmoid"])
@pytest.mark.parametrize("train_text", [False, True], ids=["frozen_text", "trained_text"])
def test_overfits_one_batch(stage2, tiny, contrastive, train_text):
    module, batch = stage2(contrastive=contrastive, train_text=train_text), tiny.batch()
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    history = []
    for _ in range(40):
        optimizer.zero_grad()
        losses = terms(module, batch)
        losses["loss"].backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["pp_mse"] < history[0]["pp_mse"]
    assert history[-1]["contrastive"] < history[0]["contrastive"]
    grads = [p.grad for p in module.encoder.parameters()]
    assert all(grad is not None for grad in grads)
    assert all(p.grad is None for p in module.frozen_teacher.parameters())
    assert any(name.startswith("text.") for name, _ in module.named_parameters()) == train_text


@pytest.mark.parametrize(
    ("depth", "blocks", "expected"),
    [
        (27, None, [6, 13, 20, 26]),
        (4, None, [0, 1, 2, 3]),
        (3, None, [0, 1, 2]),
        (12, (-1, 3, 11), [3, 11]),
    ],
)
def test_tapped_blocks(depth, blocks, expected):
    assert TapConfig(blocks=blocks).indices(depth) == expected


@pytest.mark.parametrize("weights", [{"pp": -1.0}, {"pb": math.inf}, {"kl": -0.1}, {"temperature": 0.0}])
def test_bad_weights_are_named(tiny, teacher_node, weights):
    [(name, value)] = weights.items()
    with pytest.raises(ValueError, match=rf"taps\.{name} must be .*, got {value}\."):
        Stage2Contrastive(tiny.node("cgspn"), teacher_node, taps=TapConfig(**weights))


def test_a_negative_contrastive_weight_is_named(tiny, teacher_node):
    with pytest.raises(ValueError, match=r"contrastive_weight must be at least 0, got -1\.0\."):
        Stage2Contrastive(tiny.node("cgspn"), teacher_node, contrastive_weight=-1.0)


def test_something_has_to_teach(tiny, teacher_node):
    with pytest.raises(ValueError, match=r"are 0: there is nothing to learn from"):
        Stage2Contrastive(tiny.node("cgspn"), teacher_node, None, TapConfig(pp=0, pb=0), contrastive_weight=0)
    with pytest.raises(ValueError, match=r"taps\.blocks names no block"):
        Stage2Contrastive(tiny.node("cgspn"), teacher_node, taps=TapConfig(blocks=[]))


def test_no_such_tap():
    with pytest.raises(ValueError, match=r"no block 4 to tap. Valid: -4 to 3"):
        TapConfig(blocks=[4]).indices(4)


@pytest.mark.parametrize("kind", ["pp", "pb"])
def test_a_weight_of_zero_leaves_a_tap_out(stage2, tiny, kind):
    module = stage2(taps={kind: 0.0})
    losses = terms(module, tiny.batch())
    assert not any(name.startswith(kind) for name in losses)
    assert not any(name.startswith(kind) for name in module.taps)


def test_images_without_texts(stage2, tiny):
    images = {"image": tiny.batch()["image"]}
    module = stage2(contrastive_weight=0.0)
    terms(module, images)["loss"].backward()
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)
    with pytest.raises(ValueError, match="no texts: set contrastive_weight=0"):
        terms(stage2(), images)


@pytest.fixture
def run(tiny, teacher_node, tmp_path):
    """A stage-2 run from stage-2 checkpoint to checkpoint, as users chain them."""

    def fit(name, **arguments):
        module = Stage2Contrastive(tiny.node("cgspn"), teacher_node, **arguments)
        saver = ModelCheckpoint(tmp_path / name, filename="{step}", every_n_train_steps=2, save_top_k=-1)
        trainer = tiny.trainer(tmp_path, max_steps=6, callbacks=[saver], enable_checkpointing=True)
        trainer.fit(module, tiny.data())
        return module, tmp_path / name

    return fit


def test_checkpoints_hold_the_student_alone(run, tiny, teacher_path):
    module, folder = run("a")
    checkpoint = torch.load(folder / "step=6.ckpt", weights_only=True)
    own = set(checkpoint["state_dict"])
    assert own == set(module.state_dict())
    assert {name.split(".")[0] for name in own} == {"encoder", "logit_scale", "taps"}
    optimized = sum(len(group["params"]) for group in checkpoint["optimizer_states"][0]["param_groups"])
    assert optimized == len(list(module.parameters()))

    weights = torch.load(teacher_path, weights_only=True)["state_dict"]
    for name, value in module.frozen_teacher.encoder.state_dict().items():
        assert torch.equal(value, weights[f"encoder.{name}"]), name

    loaded = Stage2Contrastive.load_from_checkpoint(folder / "step=6.ckpt", weights_only=True)
    for name, value in loaded.encoder.state_dict().items():
        assert torch.equal(value, module.encoder.state_dict()[name]), name


@pytest.mark.parametrize("train_text", [False, True], ids=["frozen_text", "trained_text"])
def test_resuming_is_bit_equal(run, tiny, teacher_node, train_text, tmp_path):
    whole, folder = run("a", warmup_steps=2, train_text=train_text)
    second = Stage2Contrastive(tiny.node("cgspn"), teacher_node, warmup_steps=2, train_text=train_text)
    tiny.trainer(tmp_path, max_steps=6).fit(
        second, tiny.data(), ckpt_path=folder / "step=4.ckpt", weights_only=True
    )
    assert set(whole.state_dict()) == set(second.state_dict())
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_resuming_does_not_need_what_it_started_from(run, tiny, teacher_node, tmp_path):
    _, first = run("a")
    _, second = run("b", init_from=InitFrom(str(first / "step=6.ckpt")))
    os.remove(first / "step=6.ckpt")
    init_from = InitFrom(str(first / "step=6.ckpt"))
    module = Stage2Contrastive(tiny.node("cgspn"), teacher_node, init_from=init_from)
    trainer = tiny.trainer(tmp_path, max_steps=7)
    trainer.fit(module, tiny.data(), ckpt_path=second / "step=6.ckpt", weights_only=True)
    assert trainer.global_step == 7
    with pytest.raises(ValueError, match="no weight file"):
        run("c", init_from=init_from)


def test_init_from_takes_the_encoder(run, tiny, teacher_node, tmp_path):
    first, folder = run("a")
    module = Stage2Contrastive(
        tiny.node("cgspn"), teacher_node, init_from=InitFrom(str(folder / "step=6.ckpt")), lr=0.0
    )
    tiny.trainer(tmp_path, max_steps=1).fit(module, tiny.data())
    for name, value in first.encoder.state_dict().items():
        assert torch.equal(value, module.encoder.state_dict()[name]), name


def test_other_normalisation_is_refused(tiny, teacher_node, tmp_path):
    module = Stage2Contrastive(tiny.node("cgspn", mean=[0, 0, 0], std=[1, 1, 1]), teacher_node)
    with pytest.raises(ValueError, match="normalises images by"):
        tiny.trainer(tmp_path).fit(module, tiny.data())
