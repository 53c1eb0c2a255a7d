"""A C-GSPN block with norm, projections and residual in fused kernels, against the same block without."""

import pytest
import torch

from cgspn.blocks.layers import Mlp
from cgspn.ops.token_linear import CHOICE
from cgspn.registry import BLOCKS

pytestmark = pytest.mark.cuda


def build(dim, latent_dim, layer_scale=None):
    node = {"type": "vit_block", "operator": {"type": "cgspn", "latent_dim": latent_dim}}
    block = BLOCKS.build({**node, "layer_scale": layer_scale}, dim=dim, num_heads=4).cuda().bfloat16()
    torch.nn.init.normal_(block.operator.up.weight, std=0.1)
    return block


def error(y, truth):
    difference = (y.double() - truth).abs()
    return difference.max(), difference.square().mean().sqrt()


@pytest.mark.parametrize("layer_scale", [None, 0.1])
@pytest.mark.parametrize(("dim", "latent_dim", "height", "width"), [(1152, 64, 9, 11), (192, 48, 7, 30)])
def test_fused_equals_unfused_within_the_error_rule(dim, latent_dim, height, width, layer_scale):
    block = build(dim, latent_dim, layer_scale)
    x = torch.randn(2, height, width, dim, device="cuda", dtype=torch.bfloat16)
    dy = torch.randn_like(x)
    answers = []
    for mode in ("fused", "unfused", "exact"):
        twin = block.double() if mode == "exact" else block
        inputs = [x.to(dy.dtype if mode != "exact" else torch.float64).requires_grad_(), *twin.parameters()]
        with CHOICE.using("unfused" if mode == "exact" else mode):
            y = twin.add_mix(inputs[0])
        grads = torch.autograd.grad(y, inputs, dy.to(y.dtype), allow_unused=True)
        answers.append([y.detach(), *(g for g in grads if g is not None)])
    for ours, plain, truth in zip(*answers, strict=True):
        (ours_max, ours_rms), (plain_max, plain_rms) = error(ours, truth), error(plain, truth)
        unit = torch.finfo(ours.dtype).eps * 2.0 ** truth.abs().max().log2().floor()
        assert ours.isfinite().all()
        assert ours_max <= 2 * plain_max + unit
        assert ours_rms <= 1.5 * plain_rms + unit


@pytest.mark.slow
def test_compiled_without_breaks_and_recompiles():
    torch._dynamo.reset()
    block = build(192, 48).eval()
    with torch.no_grad(), CHOICE.using("fused"):
        compiled = torch.compile(block, fullgraph=True, dynamic=True)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for shape in ((2, 6, 5), (3, 9, 8), (4, 6, 13)):
                x = torch.randn(*shape, 192, device="cuda", dtype=torch.bfloat16)
                torch.testing.assert_close(compiled(x), block(x), rtol=0.02, atol=0.02)


def test_under_autocast_in_a_graph_and_on_a_side_stream():
    block = build(192, 48).float().eval()
    x = torch.randn(2, 6, 5, 192, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16), CHOICE.using("fused"):
        want = block(x)
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            got = block(x)
        torch.cuda.current_stream().wait_stream(stream)
        assert torch.equal(got, want)
        with torch.cuda.graph(graph):
            got = block(x)
    got.zero_()
    graph.replay()
    assert torch.equal(got, want)


def test_activation_in_the_products_epilogue():
    mlp = Mlp(192, 768).cuda().bfloat16()
    x = torch.randn(2, 5, 7, 192, device="cuda", dtype=torch.bfloat16)
    torch.nn.init.normal_(mlp.fc1.weight, std=0.1)
    plain = mlp(x)
    with torch.no_grad():
        assert mlp.fuses_activation(x)
        ours = mlp(x)
    truth = mlp.double()(x.double())
    (ours_max, ours_rms), (plain_max, plain_rms) = error(ours, truth), error(plain, truth)
    assert ours_max <= 2 * plain_max
    assert ours_rms <= 1.5 * plain_rms
