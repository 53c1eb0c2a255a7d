import math

import pytest
import torch

from cgspn.blocks.layers import ACTIVATIONS, DropPath, Mlp
from cgspn.registry import BLOCKS, OPERATORS

DIM = 16


def build(**arguments):
    block = BLOCKS.build({"type": "vit_block", **arguments}, dim=DIM, num_heads=2).double().eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return block


def pictures():
    return torch.randn(2, 4, 3, DIM, dtype=torch.float64)


def normalise(norm, x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def erf_gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def tanh_gelu(x):
    return x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


FORMULAS = {
    "gelu": erf_gelu,
    "gelu_tanh": tanh_gelu,
    "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
    "relu": lambda x: x.clamp(min=0),
    "silu": lambda x: x / (1 + torch.exp(-x)),
}


def test_every_activation_has_a_formula_here():
    assert FORMULAS.keys() == ACTIVATIONS.keys()


CASES = [
    *[("attention", activation, layer_scale) for activation in FORMULAS for layer_scale in (None, 0.1)],
    *[(operator, "gelu_tanh", 0.1) for operator in OPERATORS.names()],
]


@pytest.mark.parametrize(("operator", "activation", "layer_scale"), CASES)
def test_block(operator, activation, layer_scale):
    block = build(operator={"type": operator}, activation=activation, layer_scale=layer_scale, norm_eps=1e-3)
    x = pictures()
    with torch.no_grad():
        branch = block.operator(normalise(block.norm1, x)) * (1 if layer_scale is None else block.ls1.gamma)
        middle = x + branch
        hidden = normalise(block.norm2, middle) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
        hidden = FORMULAS[activation](hidden) @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
        expected = middle + hidden * (1 if layer_scale is None else block.ls2.gamma)
        torch.testing.assert_close(block.mix(x), branch)
        torch.testing.assert_close(block(x), expected)
        torch.testing.assert_close(block.forward_with_taps(x), (expected, branch))


def test_swiglu():
    mlp, x = Mlp(4, 6, swiglu=True).double(), torch.randn(5, 4, dtype=torch.float64)
    gate = x @ mlp.fc1.weight[:6].T + mlp.fc1.bias[:6]
    value = x @ mlp.fc1.weight[6:].T + mlp.fc1.bias[6:]
    expected = (gate / (1 + torch.exp(-gate)) * value) @ mlp.fc2.weight.T + mlp.fc2.bias
    torch.testing.assert_close(mlp(x), expected)


def test_start_values():
    block = BLOCKS.build({"type": "vit_block", "layer_scale": 0.01}, dim=64, num_heads=2)
    assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert (block.mlp.fc1.bias == 0).all()
    assert (block.ls1.gamma == 0.01).all()
    assert block.mlp.fc1.out_features == 256


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    drop, x = DropPath(0.25).train(), torch.ones(20000, 2, 3)
    y = drop(x)
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (y == y[:, :1, :1]).all()
    assert y.mean().item() == pytest.approx(1, abs=0.02)
    assert drop.eval()(x) is x


def test_drop_path_leaves_the_tap_whole():
    block = build(drop_path=0.9).train()
    x = pictures()
    torch.testing.assert_close(block.forward_with_taps(x)[1], block.mix(x))


class Taken(torch.nn.Module):
    """An operator that takes over norm, LayerScale and residual; alone it doubles."""

    def __init__(self, dim):
        super().__init__()
        self.agrees = True

    def fuses_residual(self, x, norm, scale):
        return self.agrees

    def forward(self, x, norm=None, scale=None):
        return 2 * x if norm is None else x + 2 * norm(x) * (1 if scale is None else scale)


@pytest.mark.parametrize("layer_scale", [None, 0.1])
def test_an_operator_may_take_over_norm_and_residual(layer_scale):
    block, x = build(layer_scale=layer_scale, drop_path=0.9), pictures()
    block.operator = Taken(DIM)
    taken = block.add_mix(x)
    block.operator.agrees = False
    torch.testing.assert_close(block.add_mix(x), taken)
    torch.testing.assert_close(block(x), block.forward_with_taps(x)[0])
    # Dropped samples need the branch by itself.
    block.operator.agrees = True
    block.train()
    dropped = (block.add_mix(x) == x).flatten(1).all(1)
    assert dropped.any()


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (dict(type="vit_block", activation="tanh"), r"Unknown activation 'tanh'; valid: gelu, gelu_tanh"),
        (dict(type="vit_block", drop_path=1.5), r"drop_path=1\.5 is not in \[0, 1\)\."),
        (dict(type="vit_blok"), r"did you mean 'vit_block'"),
        (dict(type="vit_block", operator={"type": "cgspn", "latentdim": 1}), r"did you mean 'latent_dim'"),
    ],
    ids=["activation", "drop_path", "name", "nested"],
)
def test_bad_arguments_give_one_line(node, message):
    with pytest.raises(ValueError, match=message) as error:
        BLOCKS.build(node, dim=DIM, num_heads=2)
    assert "\n" not in str(error.value)
