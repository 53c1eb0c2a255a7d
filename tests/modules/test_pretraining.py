import re

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from cgspn.modules import ContrastivePretraining, InitFrom
from cgspn.modules.optimization import decayed_names, parameter_groups, warmup_cosine


@pytest.fixture
def module(tiny):
    def build(encoder=None, **arguments):
        return ContrastivePretraining(encoder or tiny.node(), **{"text": tiny.text, "lr": 3e-3} | arguments)

    return build


def step(model, optimizer, batch):
    optimizer.zero_grad()
    loss = model.training_step(batch, 0)
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("contrastive", ["info_nce", "sigmoid"])
def test_overfits_one_batch(contrastive, module, tiny):
    model, batch = module(contrastive=contrastive), tiny.batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = [step(model, optimizer, batch) for _ in range(60)]
    # Two images share each caption, so a positive gets at most half of the softmax.
    floor = torch.tensor(2.0).log().item() if contrastive == "info_nce" else 0.0
    assert losses[-1] - floor < 0.25 * (losses[0] - floor)


def test_reports_retrieval_and_zero_shot(tmp_path, module, tiny):
    trainer = tiny.trainer(tmp_path)
    trainer.fit(module(), tiny.data())
    names = trainer.callback_metrics.keys()
    assert {"val/loss", "val/retrieval/image_to_text_R@1", "val/retrieval/text_to_image_R@10"} <= names
    assert {"val/zero_shot/top1", "train/loss", "train/logit_scale"} <= names
    assert trainer.callback_metrics["val/retrieval/num_captions"] == 3
    assert trainer.callback_metrics["val/zero_shot/top5"] == 100


def test_zero_shot_equals_the_definition(tmp_path, module, tiny):
    model, data = module(templates=["a photo of a {}.", "{}"]), tiny.data(n=6)
    trainer = tiny.trainer(tmp_path)
    trainer.validate(model, data, verbose=False)
    batch = tiny.batch(6)
    model.eval()
    with torch.no_grad():
        summary = model(batch["image"])
        classes = []
        for name in data.class_names:
            texts = model.text.encode([f"a photo of a {name}.", name])
            classes.append((texts / texts.norm(dim=-1, keepdim=True)).sum(0))
        similarity = torch.nn.functional.cosine_similarity(
            summary[:, None], torch.stack(classes)[None], dim=-1
        )
    expected = 100 * (similarity.argmax(1) == batch["label"]).float().mean()
    assert trainer.callback_metrics["val/zero_shot/top1"] == pytest.approx(expected.item())


def test_bf16_mixed_on_the_cpu(tmp_path, module, tiny):
    trainer = tiny.trainer(tmp_path, precision="bf16-mixed", max_steps=2)
    trainer.fit(module(), tiny.data())
    assert trainer.callback_metrics["train/loss"].isfinite()


def test_resuming_is_bit_equal(tmp_path, module, tiny):
    whole = module(warmup_steps=2)
    halfway = ModelCheckpoint(tmp_path, filename="half", every_n_train_steps=4, save_top_k=1)
    tiny.trainer(tmp_path, max_steps=7, callbacks=[halfway], enable_checkpointing=True).fit(
        whole, tiny.data()
    )

    second = module(warmup_steps=2)
    trainer = tiny.trainer(tmp_path, max_steps=7)
    trainer.fit(second, tiny.data(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert trainer.global_step == 7
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_init_from(tmp_path, teacher_path, module, tiny):
    model = module(init_from=InitFrom(teacher_path))
    tiny.trainer(tmp_path, max_steps=1).fit(model, tiny.data())
    weights = torch.load(teacher_path, weights_only=True)["state_dict"]
    distance = (model.encoder.norm.weight - weights["encoder.norm.weight"]).abs().max()
    assert (
        distance
        < 2 * 3e-3
        < (weights["encoder.patch_embed.weight"] - module().encoder.patch_embed.weight).norm()
    )


@pytest.mark.parametrize(
    ("init_from", "message"),
    [
        (InitFrom("nowhere.ckpt"), r"no weight file nowhere\.ckpt"),
        (dict(path="TEACHER", part="student"), "no part 'student'; valid: encoder"),
    ],
    ids=["missing", "part"],
)
def test_init_from_errors(tmp_path, teacher_path, init_from, message, module, tiny):
    if isinstance(init_from, dict):
        init_from["path"] = teacher_path
    with pytest.raises(ValueError, match=message) as error:
        tiny.trainer(tmp_path).fit(module(init_from=init_from), tiny.data())
    assert "\n" not in str(error.value)


def test_init_from_another_model(tmp_path, teacher_path, module, tiny):
    other = module(tiny.node(embed_dim=8), init_from=InitFrom(teacher_path))
    with pytest.raises(ValueError, match="belongs to another model"):
        tiny.trainer(tmp_path).fit(other, tiny.data())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(contrastive="clip"), "'clip'. Valid: info_nce, sigmoid"),
        (dict(templates=["a photo"]), "'a photo' has no {}"),
        (dict(lr=1e39), "lr=1e+39 must be a number from 0 to 3.4e+38"),
        (dict(weight_decay=float("nan")), "weight_decay=nan must be a number from 0"),
    ],
    ids=["contrastive", "template", "lr", "weight_decay"],
)
def test_bad_arguments(arguments, message, module):
    with pytest.raises(ValueError, match=re.escape(message)):
        module(**arguments)


def test_warmup_longer_than_the_run(tmp_path, module, tiny):
    with pytest.raises(ValueError, match="warmup_steps=9 must lie between 0 and the run's 4 steps"):
        tiny.trainer(tmp_path).fit(module(warmup_steps=9), tiny.data())


def test_schedule():
    factors = [warmup_cosine(step, 4, 10) for step in range(11)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[7] == pytest.approx(0.5)
    assert factors[10] == pytest.approx(0.0)


def test_weight_decay_spares_vectors_positions_and_the_probe(module):
    model = module()
    decayed, plain = parameter_groups(model, decayed_names(model), 0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    spared = {names[id(p)] for p in plain["params"]}
    assert plain["weight_decay"] == 0.0
    assert {"logit_scale", "encoder.pos_embed.weight", "encoder.head.probe", "encoder.norm.bias"} <= spared
    assert "encoder.blocks.0.mlp.fc1.weight" in {names[id(p)] for p in decayed["params"]}
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def test_parameters_in_flat_shards_are_decayed_by_their_name(module):
    model = module()
    names, expected = decayed_names(model), {}
    for group in parameter_groups(model, names, 0.1):
        expected[group["weight_decay"]] = sum(p.numel() for p in group["params"])
    # As FSDP leaves them: each layer behind a wrapper, its parameters flat.
    for layer in [m for m in model.modules() if isinstance(m, torch.nn.Linear)]:
        inner = torch.nn.Linear(1, 1, bias=layer.bias is not None)
        for name, parameter in list(layer.named_parameters()):
            setattr(inner, name, torch.nn.Parameter(parameter.detach().flatten()))
            delattr(layer, name)
        layer._fsdp_wrapped_module = inner
    for group in parameter_groups(model, names, 0.1):
        assert sum(p.numel() for p in group["params"]) == expected[group["weight_decay"]]
