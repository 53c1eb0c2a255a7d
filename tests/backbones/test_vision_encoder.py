import pytest
import torch

from cgspn.backbones import VisionEncoder
from cgspn.registry import BACKBONES

IMAGES = torch.randn(2, 3, 30, 21, generator=torch.Generator().manual_seed(1))


def build(**arguments):
    tiny = dict(type="vision_encoder", img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4)
    return BACKBONES.build({**tiny, **arguments}).eval()


def test_encode_gives_summary_and_features():
    encoder = build()
    summary, features = encoder.encode(IMAGES)
    assert summary.shape == (2, 32)
    assert features.shape == (2, 4, 3, 32)
    assert torch.equal(features, encoder.forward_features(IMAGES))
    assert torch.equal(summary, encoder(IMAGES))


def test_classifier_can_be_set_and_removed():
    encoder = build(num_classes=5)
    assert encoder(IMAGES).shape == (2, 5)
    features = encoder.forward_features(IMAGES)
    assert encoder.forward_head(features, pre_logits=True).shape == (2, 32)
    assert encoder.get_classifier().out_features == 5
    encoder.reset_classifier(0)
    assert torch.equal(encoder(IMAGES), encoder.encode(IMAGES).summary)


def test_images_are_padded_with_zeros_at_the_bottom_and_the_right():
    encoder = build()
    padded = torch.nn.functional.pad(IMAGES, (0, 3, 0, 2))
    assert torch.equal(encoder.forward_features(IMAGES), encoder.forward_features(padded))


def test_patch_embedding_equals_a_strided_convolution():
    encoder = build(pos_embed="none")
    images = torch.randn(2, 3, 32, 24)
    patch = encoder.patch_embed
    expected = torch.nn.functional.conv2d(images, patch.weight, patch.bias, stride=8).permute(0, 2, 3, 1)
    torch.testing.assert_close(encoder.embed(images), expected)


def test_positions_of_the_training_grid_are_used_as_they_are():
    encoder, images = build(img_size=(32, 24)), torch.randn(1, 3, 32, 24)
    added = encoder.embed(images) - encoder.patch_embed(images)
    torch.testing.assert_close(added, encoder.pos_embed.weight.detach())


@pytest.mark.parametrize(("height", "width"), [(64, 48), (16, 16), (40, 8)])
def test_positions_are_resampled_bicubic_and_antialiased(height, width):
    encoder, images = build(img_size=(32, 24)), torch.randn(1, 3, height, width)
    stored = encoder.pos_embed.weight.permute(0, 3, 1, 2)
    size = (height // 8, width // 8)
    expected = torch.nn.functional.interpolate(stored, size, mode="bicubic", antialias=True)
    added = encoder.embed(images) - encoder.patch_embed(images)
    torch.testing.assert_close(added, expected.permute(0, 2, 3, 1))


def test_intermediates_are_the_blocks_outputs():
    encoder = build()
    trace = encoder.forward_with_taps(IMAGES)
    final, found = encoder.forward_intermediates(IMAGES, indices=[0, -1], output_fmt="NHWC")
    assert torch.equal(final, trace.features)
    assert torch.equal(found[0], trace.outputs[0])
    assert torch.equal(found[1], trace.outputs[2])
    last_two = encoder.forward_intermediates(IMAGES, indices=2, intermediates_only=True)
    assert [y.shape for y in last_two] == [(2, 32, 4, 3)] * 2
    assert torch.equal(last_two[0], trace.outputs[1].permute(0, 3, 1, 2))


def test_normed_last_intermediate_is_the_features():
    encoder = build()
    final, found = encoder.forward_intermediates(IMAGES, indices=1, norm=True, output_fmt="NHWC")
    assert torch.equal(found[0], final)
    assert torch.equal(final, encoder.forward_features(IMAGES))


def test_stop_early_skips_later_blocks():
    encoder = build()
    encoder.blocks[2].register_forward_hook(lambda *_: pytest.fail("block 2 ran"))
    found = encoder.forward_intermediates(IMAGES, indices=[1], stop_early=True, intermediates_only=True)
    assert len(found) == 1


def test_trace_is_consistent_with_the_forward_pass():
    encoder = build(layer_scale=0.5)
    trace = encoder.forward_with_taps(IMAGES, blocks=[0, 2])
    assert set(trace.inputs) == set(trace.branches) == set(trace.outputs) == {0, 2}
    assert torch.equal(trace.inputs[0], encoder.embed(IMAGES))
    for i in (0, 2):
        assert torch.equal(trace.branches[i], encoder.blocks[i].mix(trace.inputs[i]))
        assert torch.equal(trace.outputs[i], encoder.blocks[i](trace.inputs[i]))
    assert torch.equal(trace.features, encoder.norm(trace.outputs[2]))
    assert torch.equal(trace.summary, encoder(IMAGES))


def test_only_the_chosen_blocks_use_attention():
    encoder = build(
        operator={"type": "attention"}, attention_at=[1], attention={"type": "attention", "num_heads": 2}
    )
    assert [block.operator.num_heads for block in encoder.blocks] == [4, 2, 4]


def test_an_operator_can_be_given_by_its_bare_name():
    encoder = VisionEncoder(img_size=32, depth=1, embed_dim=32, num_heads=2, operator="cgspn")
    assert encoder.pos_embed is None
    assert type(encoder.blocks[0].operator).__name__ == "CGSPN"


def test_drop_path_rises_with_depth_and_acts_in_training_only():
    encoder = build(drop_path_rate=0.4)
    assert [block.drop_path.rate for block in encoder.blocks] == pytest.approx([0, 0.2, 0.4])
    assert torch.equal(encoder(IMAGES), encoder(IMAGES))
    encoder.train()
    assert not torch.equal(encoder(IMAGES), encoder(IMAGES))


def test_names_for_the_optimizer_exist():
    encoder = build()
    names = {name for name, _ in encoder.named_parameters()}
    assert encoder.no_weight_decay() == {"pos_embed.weight", "head.probe"}
    assert encoder.no_weight_decay() <= names
    assert [info["module"] for info in encoder.feature_info] == ["blocks.0", "blocks.1", "blocks.2"]
    assert {info["num_chs"] for info in encoder.feature_info} == {32}
    assert {info["reduction"] for info in encoder.feature_info} == {8}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_heads=5), r"num_heads=5 does not divide dim=32; valid: 1, 2, 4, 8, 16, 32\."),
        (dict(attention_at=[3]), r"attention_at names block 3; valid: 0 to 2\."),
        (dict(pos_embed="rope"), "'auto', 'learned', 'none'"),
        (dict(activation="tanh"), r"Unknown activation 'tanh'; valid: gelu, "),
        (dict(operator={"type": "atention"}), r"did you mean 'attention'"),
        (dict(head={"type": "cls"}), r"Unknown head 'cls'"),
        (dict(head={"type": "token"}), r"head 'token' needs prefix_tokens of at least 1, got 0"),
        (dict(prefix_tokens=-1), r"prefix_tokens=-1 is negative"),
        (
            dict(prefix_tokens=1, operator={"type": "cgspn"}),
            r"prefix_tokens=1 does not go with the operator 'cgspn', .* valid: attention\.",
        ),
        (dict(pos_resampling="area"), "'bicubic_antialias', 'bicubic', 'bilinear_antialias'"),
        (dict(summary_dim=0), r"summary_dim=0 must be at least 1"),
        (dict(block={"type": "vit_block", "droppath": 1}), r"droppath"),
        (dict(depth=0), r"depth=0 must be at least 1\."),
        (dict(img_size=(0, 8)), r"img_size=0 must be at least 1\."),
        (dict(mean=(0.5,)), r"in_chans=3 values each"),
        (dict(drop_path_rate=1.0), r"drop_path=1\.0 is not in \[0, 1\)"),
        (dict(num_classes=-1), r"num_classes must be at least 0, got -1\."),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_give_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        build(**arguments)
    assert "\n" not in str(error.value)


def test_a_constructor_checks_by_itself_too():
    with pytest.raises(ValueError, match=r"pos_embed='rope' is unknown; valid: auto, learned, none\."):
        VisionEncoder(img_size=32, depth=1, embed_dim=32, num_heads=2, pos_embed="rope")


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 32, 32), (2, 3, 32)])
def test_wrong_image_shapes_give_one_line(shape):
    with pytest.raises(ValueError, match=r"Expected images \(B, 3, height, width\), got \("):
        build()(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64, torch.bfloat16])
def test_wrong_image_dtypes_give_one_line(dtype):
    with pytest.raises(
        ValueError, match=rf"images of dtype torch\.float32 as the weights have, got {dtype}\."
    ):
        build()(torch.zeros(1, 3, 32, 32, dtype=dtype))
    with pytest.raises(ValueError, match=r"images must be a tensor, got ndarray\."):
        build()(torch.zeros(1, 3, 32, 32).numpy())


def test_autocast_takes_the_dtypes_that_it_converts():
    encoder = build()
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder(torch.zeros(1, 3, 32, 32, dtype=torch.float16)).isfinite().all()
        with pytest.raises(ValueError, match=r"got torch\.float64\."):
            encoder(torch.zeros(1, 3, 32, 32, dtype=torch.float64))


@pytest.mark.parametrize("indices", [0, -1])
def test_a_number_of_blocks_below_1_is_named(indices):
    with pytest.raises(ValueError, match=f"indices={indices} must be a number of last blocks, at least 1"):
        build().forward_intermediates(IMAGES, indices=indices)


@pytest.mark.parametrize(("indices", "bad"), [([3], 3), ([-4], -4), (4, -1)])
def test_blocks_that_are_not_there_are_named(indices, bad):
    with pytest.raises(ValueError, match=f"no block {bad} among 3; asked for"):
        build().forward_intermediates(IMAGES, indices=indices)


def test_unknown_output_format_is_named():
    with pytest.raises(ValueError, match="output_fmt='NLC' is unknown; valid: NCHW, NHWC"):
        build().forward_intermediates(IMAGES, output_fmt="NLC")
