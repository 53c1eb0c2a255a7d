"""Teachers from transformers against the library's own forward."""

import json

import pytest
import torch

from cgspn.backbones import VisionEncoder
from cgspn.backbones.weights import init_from_teacher
from cgspn.registry import TEACHERS

transformers = pytest.importorskip("transformers")

KINDS = ["siglip", "siglip2", "clip", "dinov2", "dinov2_swiglu"]
CLASSES = {
    "siglip": "SiglipModel",
    "siglip2": "Siglip2Model",
    "clip": "CLIPModel",
    "dinov2": "Dinov2Model",
    "dinov2_swiglu": "Dinov2Model",
}
# The size it was trained at, and others: larger, smaller, not square.
SIZES = [(16, 16), (24, 20), (12, 28)]

every_kind = pytest.mark.parametrize("kind", KINDS)
every_size = pytest.mark.parametrize(("height", "width"), SIZES, ids=[f"{h}x{w}" for h, w in SIZES])


@pytest.fixture
def teacher(hf_folder):
    return lambda kind: TEACHERS.build({"type": "transformers", "weights": str(hf_folder(kind))})


@pytest.fixture
def original(hf_folder):
    """The model as the library loads it."""
    return lambda kind: getattr(transformers, CLASSES[kind]).from_pretrained(hf_folder(kind)).eval()


@torch.no_grad()
def forward(kind, model, images):
    """Summary, features after the last norm and all hidden states, as the library computes them."""
    if kind == "siglip2":
        B, _, height, width = images.shape
        grid = height // 4, width // 4
        patches = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(B, -1, 48)
        out = model.vision_model(
            patches, torch.ones(patches.shape[:2]), torch.tensor([grid] * B), output_hidden_states=True
        )
        return out.pooler_output, out.last_hidden_state, out.hidden_states
    if kind.startswith("dinov2"):
        out = model(images, output_hidden_states=True)
        return out.pooler_output, out.last_hidden_state[:, 1:], [h[:, 1:] for h in out.hidden_states]
    out = model.vision_model(images, interpolate_pos_encoding=True, output_hidden_states=True)
    if kind == "siglip":
        return out.pooler_output, out.last_hidden_state, out.hidden_states
    features = model.vision_model.post_layernorm(out.last_hidden_state[:, 1:])
    summary = model.get_image_features(images, interpolate_pos_encoding=True).pooler_output
    return summary, features, [h[:, 1:] for h in out.hidden_states]


def close(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours.flatten(1, -2), theirs, rtol=tolerance, atol=tolerance)


@every_kind
@every_size
def test_features_and_taps_are_the_librarys(teacher, original, kind, height, width):
    images = torch.randn(2, 3, height, width)
    summary, features, hidden = forward(kind, original(kind), images)
    trace = teacher(kind).trace(images)
    torch.testing.assert_close(trace.summary, summary, rtol=1e-5, atol=1e-5)
    close(trace.features, features)
    for i in range(3):
        close(trace.inputs[i], hidden[i])
    assert features.std() > 0.1


@every_kind
def test_taps_are_the_operators_branch_and_the_blocks_output(teacher, original, kind):
    model, images = original(kind), torch.randn(2, 3, 16, 16)
    seen = {}
    module = model if kind.startswith("dinov2") else model.vision_model
    layer = list(module.encoder.layer if kind.startswith("dinov2") else module.encoder.layers)[1]
    branch = layer.layer_scale1 if kind.startswith("dinov2") else layer.self_attn
    first = lambda value: value[0] if isinstance(value, tuple) else value  # noqa: E731
    branch.register_forward_hook(lambda m, args, output: seen.update(branch=first(output)))
    layer.register_forward_hook(lambda m, args, output: seen.update(output=first(output)))
    forward(kind, model, images)
    trace = teacher(kind).trace(images, [1])
    prefix = 0 if kind.startswith("siglip") else 1
    close(trace.branches[1], seen["branch"][:, prefix:])
    close(trace.outputs[1], seen["output"][:, prefix:])


@pytest.mark.parametrize("kind", ["siglip", "siglip2", "clip"])
def test_text_embeddings_are_the_librarys(hf_folder, teacher, original, kind):
    texts = ["A cat.", "dog", "a caption of many words that is cut off at the end of the context"]
    model, tokenizer = original(kind), transformers.AutoTokenizer.from_pretrained(hf_folder(kind))
    padding = "longest" if kind == "clip" else "max_length"
    with torch.no_grad():
        inputs = tokenizer(texts, padding=padding, truncation=True, max_length=12, return_tensors="pt")
        expected = model.get_text_features(**inputs).pooler_output
    found = teacher(kind).encode_text(texts)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found[0] - found[1]).abs().max() > 0.01


def test_siglip_reads_lower_case_with_any_tokenizer(hf_folder, tmp_path):
    for file in hf_folder("siglip").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    words = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    merges = [tuple(pair) for pair in words["merges"]]
    transformers.GemmaTokenizer(vocab=words["vocab"], merges=merges).save_pretrained(tmp_path)
    teacher = TEACHERS.build({"type": "transformers", "weights": str(tmp_path)})
    assert type(teacher.text.hf_tokenizer).__name__ == "GemmaTokenizer"
    upper, lower = teacher.encode_text(["A Cat.", "a cat."])
    assert torch.equal(upper, lower)


@every_kind
@every_size
def test_an_attention_student_reproduces_its_teacher(teacher, kind, height, width):
    source = teacher(kind).encoder
    student = VisionEncoder(**source.config).eval()
    report = init_from_teacher(student, source)
    assert not report.kept
    assert not report.unused
    images = torch.randn(2, 3, height, width)
    with torch.no_grad():
        for ours, theirs in zip(student.encode(images), source.encode(images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@every_kind
def test_its_vision_tower_can_be_kept_as_an_encoder(teacher, kind, tmp_path):
    source, images = teacher(kind).encoder, torch.randn(1, 3, 20, 12)
    source.save_pretrained(tmp_path)
    with torch.no_grad():
        for kept, own in zip(
            VisionEncoder.from_pretrained(tmp_path).encode(images), source.encode(images), strict=True
        ):
            assert torch.equal(kept, own)


@every_kind
def test_a_twin_takes_all_but_operators_and_positions(teacher, kind):
    source = teacher(kind).encoder
    changes = {"operator": {"type": "cgspn"}, "prefix_tokens": 0, "head": {"type": "map"}}
    student = VisionEncoder(**source.config | changes)
    report = init_from_teacher(student, source)
    kept = ("operator.", "norm1.") if source.prefix is None else ("operator.", "norm1.", "head.")
    assert all(any(part in name for part in kept) for name in report.kept)
    assert all(
        name.startswith(("pos_embed", "prefix")) or "operator." in name or "norm1." in name
        for name in report.unused
    )


def test_what_the_files_say(teacher):
    siglip, clip, dinov2 = (teacher(kind) for kind in ("siglip", "clip", "dinov2"))
    assert siglip.mean == siglip.std == (0.5, 0.5, 0.5)
    assert clip.mean == (0.48145466, 0.4578275, 0.40821073)
    assert dinov2.std == (0.229, 0.224, 0.225)
    assert (siglip.logit_scale, siglip.logit_bias) == (2.5, -7)
    assert clip.logit_bias is None
    assert dinov2.text is None
    assert siglip.img_size == (16, 16)
    assert not any(parameter.requires_grad for parameter in siglip.parameters())


def change_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def remove_weight(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["vision_model.post_layernorm.bias"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def pickle_code(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"code": pytest.raises}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "holds no config.json; give a folder that save_pretrained"),
        (lambda f: (f / "config.json").write_text("{"), "is no model that transformers can load: "),
        (lambda f: change_config(f, model_type="bert"), "valid: siglip, siglip2, clip, dinov2"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x"), "is no model that transformers can load: "),
        (lambda f: (f / "model.safetensors").unlink(), "is no model that transformers can load: "),
        (pickle_code, "can load: it is damaged, or holds more than tensors and plain data"),
        (remove_weight, "lacks vision_model.post_layernorm.bias"),
        (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer"),
    ],
    ids=[
        *("no_config", "bad_config", "another_class", "bad_weights", "no_weights", "code", "a_weight"),
        "no_tokenizer",
    ],
)
@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_a_broken_folder_is_one_line(hf_folder, tmp_path, kind, damage, message):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in hf_folder(kind).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    damage(folder)
    with pytest.raises(ValueError, match=message) as error:
        TEACHERS.build({"type": "transformers", "weights": str(folder)})
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("weights", ["/nowhere/model", "./model", "a/b/c"])
def test_no_such_folder(weights):
    with pytest.raises(ValueError, match=f"There is no folder {weights}; give a folder"):
        TEACHERS.build({"type": "transformers", "weights": weights})
