"""C-GSPN with its block's norm and residual taken over: the composed form of the fused operators, on CPU."""

import pytest
import torch

from cgspn.ops import library
from cgspn.ops.latent_propagation import latent_backend
from cgspn.registry import BLOCKS, OPERATORS

pytestmark = pytest.mark.skipif(not library.STATUS["cpu"].active, reason="the native library is not active")


@pytest.mark.parametrize("scaled", [True, False])
def test_it_equals_norm_operator_scale_and_residual(scaled):
    operator, norm = OPERATORS.build({"type": "cgspn"}, dim=32, num_heads=4).double(), torch.nn.LayerNorm(32)
    norm.double()
    for parameter in (*operator.parameters(), *norm.parameters()):
        torch.nn.init.normal_(parameter, std=0.3)
    scale = torch.randn(32, dtype=torch.float64, requires_grad=True) if scaled else None
    x = torch.randn(2, 4, 5, 32, dtype=torch.float64, requires_grad=True)
    leaves = [x, *operator.parameters(), *norm.parameters(), *([scale] if scaled else [])]
    ours = operator(x, norm, scale)
    plain = x + operator(norm(x)) * (scale if scaled else 1)
    torch.testing.assert_close(ours, plain)
    dy = torch.randn_like(plain)
    for got, want in zip(
        torch.autograd.grad(ours, leaves, dy), torch.autograd.grad(plain, leaves, dy), strict=True
    ):
        torch.testing.assert_close(got, want)


def kept_bytes(function, x, block):
    """What autograd keeps for the backward pass, parameters apart."""
    free = {parameter.untyped_storage()._cdata for parameter in block.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in free:
            kept[storage._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function(x)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_a_block_keeps_at_most_0_72_of_what_a_vit_block_keeps():
    x = torch.randn(1, 6, 6, 1152, dtype=torch.bfloat16, requires_grad=True)
    vit, ours = (
        BLOCKS.build(
            {"type": "vit_block", "operator": {"type": name}}, dim=1152, num_heads=16, mlp_dim=4304
        ).bfloat16()
        for name in ("attention", "cgspn")
    )
    with latent_backend("fused"):
        kept = kept_bytes(lambda x: ours.add_mlp(ours.operator(x, ours.norm1, None)), x, ours)
    assert kept <= 0.72 * kept_bytes(vit, x, vit)
