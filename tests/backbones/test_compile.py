import pytest
import torch

from cgspn.registry import BACKBONES

# Two sizes without padding share a graph, and so do two with.
SIZES = [(2, 80, 56), (3, 72, 88), (2, 69, 99), (3, 77, 123)]


def gradients(encoder, encode, images):
    encoder.zero_grad()
    summary, features = encode(images)
    (summary.square().mean() + features.square().mean()).backward()
    return [summary.detach(), features.detach(), *(parameter.grad for parameter in encoder.parameters())]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_demo_patch8", "cgspn_demo_patch8"])
def test_compiled_encoder_equals_eager_at_any_size(name):
    torch.compiler.reset()
    encoder = BACKBONES.build({"type": name, "depth": 1})
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    compiled = torch.compile(encoder.encode, fullgraph=True, dynamic=True)
    torch._dynamo.utils.counters.clear()
    for batch, height, width in SIZES:
        images = torch.randn(batch, 3, height, width)
        for ours, expected in zip(
            gradients(encoder, compiled, images), gradients(encoder, encoder.encode, images), strict=True
        ):
            torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
