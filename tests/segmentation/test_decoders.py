import pytest
import torch
from torch.nn import functional

from cgspn.registry import DECODERS


@pytest.fixture
def samples():
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    def make(labels):
        made = [SegDataSample() for _ in labels]
        for sample, label in zip(made, labels, strict=True):
            sample.gt_sem_seg = PixelData(data=label[None])
        return made

    return make


def test_linear_decoder_is_batch_norm_and_a_1x1_convolution(samples):
    decoder = DECODERS.build({"type": "linear"}, in_channels=[6, 4], num_classes=5)
    first, second = torch.randn(3, 6, 4, 5), torch.randn(3, 4, 4, 5)
    labels = torch.randint(0, 5, (3, 8, 10))
    labels[0, :3] = 255
    weight, bias = decoder.decode_head.conv_seg.weight, decoder.decode_head.conv_seg.bias
    x = torch.cat([first, second], 1)
    x = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    scores = torch.einsum("kc,bchw->bkhw", weight[..., 0, 0], x) + bias[:, None, None]
    torch.testing.assert_close(decoder([first, second]), scores)
    losses = decoder.losses([first, second], samples(labels))
    resized = functional.interpolate(scores, (8, 10), mode="bilinear")
    # mmsegmentation divides by all pixels, the ignored ones included.
    expected = functional.cross_entropy(resized, labels, ignore_index=255, reduction="sum") / labels.numel()
    torch.testing.assert_close(losses["decode_loss_ce"], expected)
    right = (resized.argmax(1) == labels)[labels != 255].float().mean()
    torch.testing.assert_close(losses["decode_acc_seg"].squeeze(), 100 * right, rtol=1e-4, atol=1e-3)


def test_linear_decoder_has_nothing_but_its_layers():
    decoder = DECODERS.build({"type": "linear"}, in_channels=[6, 4], num_classes=5)
    assert sum(p.numel() for p in decoder.parameters()) == 2 * 10 + 10 * 5 + 5


@pytest.mark.parametrize("size", [(8, 8), (6, 10)])
def test_upernet_scores_and_losses(samples, size):
    decoder = DECODERS.build(
        {"type": "upernet", "channels": 16, "auxiliary_channels": 8}, in_channels=[12] * 4, num_classes=7
    )
    features = [torch.randn(2, 12, *size, requires_grad=True) for _ in range(4)]
    assert decoder(features).shape == (2, 7, 4 * size[0], 4 * size[1])
    losses = decoder.losses(features, samples(torch.randint(0, 7, (2, 32, 32))))
    assert {name for name in losses if "loss" in name} == {"decode_loss_ce", "auxiliary_loss_ce"}
    sum(value for name, value in losses.items() if "loss" in name).backward()
    assert all(feature.grad.abs().sum() > 0 for feature in features)


def test_upernet_without_auxiliary_head():
    node = {"type": "upernet", "channels": 8, "auxiliary_weight": 0.0}
    assert DECODERS.build(node, in_channels=[4] * 4, num_classes=3).auxiliary_head is None


@pytest.mark.parametrize("in_channels", [[8], [8, 8, 8], [8, 8, 8, 4]])
def test_upernet_needs_four_equal_maps(in_channels):
    with pytest.raises(ValueError, match="4 equal feature maps"):
        DECODERS.build({"type": "upernet"}, in_channels=in_channels, num_classes=3)


def test_unknown_decoder_and_argument():
    with pytest.raises(ValueError, match="linear, upernet"):
        DECODERS.check({"type": "liner"})
    with pytest.raises(ValueError, match="dropout_ratio"):
        DECODERS.check({"type": "linear", "dropout": 0.1})
