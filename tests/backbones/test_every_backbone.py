"""What every registered backbone, and an encoder with every registered operator and block, has to do."""

import pytest
import torch

from cgspn.registry import BACKBONES, BLOCKS, HEADS, OPERATORS

SMALL = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_dim=48)
SIZES = [(32, 32), (32, 48), (8, 8), (33, 17), (5, 100)]


def small(name, **arguments):
    """A node of the entry ``name``, small where the entry can be."""
    parameters = BACKBONES.parameters(name)
    return {
        "type": name,
        **{key: value for key, value in {**SMALL, **arguments}.items() if key in parameters},
    }


def distinct_backbones():
    """Nodes of all entries, but presets that differ in size only count once."""
    found = {}
    for name in BACKBONES.names():
        defaults = {key: p.default for key, p in BACKBONES.parameters(name).items()}
        resolved = {**defaults, **small(name), "type": getattr(BACKBONES.find(name), "target", name)}
        found.setdefault(repr(resolved), small(name))
    return {node["type"]: node for node in found.values()}


NODES = {
    **distinct_backbones(),
    **{f"operator-{name}": small("vision_encoder", operator={"type": name}) for name in OPERATORS.names()},
    **{f"block-{name}": small("vision_encoder", block={"type": name}) for name in BLOCKS.names()},
    **{
        f"head-{name}": small("vision_encoder", head={"type": name}, prefix_tokens=int(name == "token"))
        for name in HEADS.names()
    },
    "hybrid": small("vision_encoder", operator={"type": "cgspn"}, attention_at=[1]),
    "all_parts": small(
        "vision_encoder",
        operator={"type": "cgspn"},
        pre_norm=True,
        layer_scale=0.1,
        swiglu=True,
        activation="gelu",
        norm_eps=1e-5,
        num_classes=7,
        pos_embed="learned",
    ),
    "prefix_tokens": small("vision_encoder", prefix_tokens=3, pre_norm=True, pos_resampling="bicubic"),
}

every_node = pytest.mark.parametrize("node", NODES.values(), ids=NODES.keys())


def build(node, randomised=True):
    """An encoder in which no branch is zero."""
    encoder = BACKBONES.build(node).eval()
    if randomised:
        for parameter in encoder.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return encoder


def pictures(height=32, width=40, count=2):
    return torch.randn(count, 3, height, width)


@every_node
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_any_size_gives_summary_and_features(node, height, width):
    encoder = build(node)
    images = pictures(height, width)
    p, C = encoder.patch_size, encoder.num_features
    for dtype in (torch.float32, torch.bfloat16):
        summary, features = encoder.to(dtype).encode(images.to(dtype))
        assert features.shape == (2, -(-height // p), -(-width // p), C)
        assert summary.shape == (2, C)
        assert features.dtype == summary.dtype == dtype
        assert features.isfinite().all()
        assert summary.isfinite().all()


@every_node
def test_forward_is_the_head_of_the_features(node):
    encoder, images = build(node), pictures()
    summary, features = encoder.encode(images)
    assert torch.equal(features, encoder.forward_features(images))
    if getattr(encoder, "head_reads_prefix", False):
        assert torch.equal(encoder(images), summary)
        with pytest.raises(ValueError, match="reads a prefix token, not features: call encode instead"):
            encoder.forward_head(features)
        return
    assert torch.equal(encoder(images), encoder.forward_head(features))
    assert torch.equal(summary, encoder.forward_head(features, pre_logits=True))


@every_node
def test_intermediates_agree_with_the_features(node):
    encoder, images = build(node), pictures()
    features = encoder.forward_features(images)
    final, found = encoder.forward_intermediates(images, norm=True)
    assert torch.equal(final, features)
    assert torch.equal(found[-1], features.permute(0, 3, 1, 2))
    assert [y.shape[1] for y in found] == [info["num_chs"] for info in encoder.feature_info]
    for y, info in zip(found, encoder.feature_info, strict=True):
        assert y.shape[2:] == (32 // info["reduction"], 40 // info["reduction"])


@every_node
def test_a_picture_is_encoded_the_same_alone_and_in_a_batch(node):
    encoder, images = build(node).double(), pictures(33, 20, count=3).double()
    for together, alone in zip(encoder.encode(images), encoder.encode(images[1:2]), strict=True):
        torch.testing.assert_close(together[1:2], alone, rtol=1e-10, atol=1e-12)


@every_node
def test_saved_weights_give_the_same_features(node, tmp_path):
    encoder, other, images = build(node), build(node), pictures()
    torch.save(encoder.state_dict(), tmp_path / "encoder.pt")
    other.load_state_dict(torch.load(tmp_path / "encoder.pt", weights_only=True))
    assert torch.equal(other(images), encoder(images))


@every_node
def test_gradient_checkpointing_changes_nothing(node):
    encoder, images = build(node).train(), pictures()
    gradients = []
    for enable in (False, True):
        encoder.zero_grad()
        images.grad = None
        encoder.set_grad_checkpointing(enable)
        summary, features = encoder.encode(images.requires_grad_())
        (summary.square().mean() + features.square().mean()).backward()
        gradients.append([images.grad, *(p.grad.clone() for p in encoder.parameters() if p.grad is not None)])
        assert torch.equal(encoder.forward_intermediates(images)[0], features)
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@every_node
def test_every_parameter_gets_a_gradient(node):
    encoder = build(node)
    images = pictures().requires_grad_()
    (encoder(images).square().sum() + encoder.forward_features(images).square().sum()).backward()
    assert [
        name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ] == []


@every_node
def test_autocast_to_bfloat16_stays_close(node):
    encoder, images = build(node), pictures()
    expected = encoder.forward_features(images)
    with torch.autocast("cpu", torch.bfloat16):
        features = encoder.forward_features(images)
    error = (features - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < 0.05


@every_node
def test_a_new_encoder_starts_with_features_of_order_one(node):
    features = build(node, randomised=False).forward_features(pictures())
    assert 0.3 < features.square().mean().sqrt() < 3


@every_node
def test_wrong_images_give_one_line(node):
    with pytest.raises(ValueError, match=r"\(2, 4, 32, 32\)") as error:
        build(node)(torch.zeros(2, 4, 32, 32))
    assert "\n" not in str(error.value)


TRANSPOSED = {"tb": "lr", "lr": "tb", "bt": "rl", "rl": "bt"}
DIRECTIONS = ["tb", "bt", "lr", "rl"]


@pytest.mark.parametrize("name", [n for n in OPERATORS.names() if "directions" in OPERATORS.parameters(n)])
@pytest.mark.parametrize("attention_at", [[], [1]], ids=["plain", "hybrid"])
def test_transposing_the_picture_is_swapping_the_directions(name, attention_at):
    def with_directions(directions):
        operator = {"type": name, "directions": directions}
        return build(small("vision_encoder", operator=operator, attention_at=attention_at)).double()

    encoder = with_directions(DIRECTIONS)
    swapped = with_directions([TRANSPOSED[direction] for direction in DIRECTIONS])
    # The patch embedding's and the depth-wise convolutions' weights are the only ones with pixel axes.
    swapped.load_state_dict(
        {key: t.transpose(2, 3) if t.ndim == 4 else t for key, t in encoder.state_dict().items()}
    )
    images = pictures(33, 20).double()
    summary, features = encoder.encode(images)
    other_summary, other_features = swapped.encode(images.transpose(2, 3))
    torch.testing.assert_close(other_features.transpose(1, 2), features, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(other_summary, summary, rtol=1e-10, atol=1e-12)


def test_transposing_the_picture_and_the_positions_transposes_a_vits_features():
    encoder = build(small("vision_encoder")).double()
    state = encoder.state_dict()
    state["patch_embed.weight"] = state["patch_embed.weight"].transpose(2, 3)
    state["pos_embed.weight"] = state["pos_embed.weight"].transpose(1, 2)
    other, images = build(small("vision_encoder")).double(), pictures(33, 20).double()
    other.load_state_dict(state)
    features = encoder.forward_features(images)
    torch.testing.assert_close(other.forward_features(images.transpose(2, 3)).transpose(1, 2), features)
