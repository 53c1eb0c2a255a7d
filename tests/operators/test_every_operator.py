import re

import pytest
import torch

from cgspn.registry import OPERATORS

DIM = 32
GRIDS = [(1, 1), (1, 6), (5, 1), (4, 4), (7, 3)]
TRANSPOSED = {"tb": "lr", "lr": "tb", "bt": "rl", "rl": "bt"}
OPERATOR_NAMES = OPERATORS.names()
PROPAGATION_NAMES = [name for name in OPERATOR_NAMES if "directions" in OPERATORS.parameters(name)]

every_operator = pytest.mark.parametrize("name", OPERATOR_NAMES)
every_propagation = pytest.mark.parametrize("name", PROPAGATION_NAMES)


def build(name, randomised=True, **arguments):
    operator = OPERATORS.build({"type": name, **arguments}, dim=DIM, num_heads=4)
    if randomised:
        for parameter in operator.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return operator


def test_the_built_in_operators_are_registered():
    assert {"attention", "cgspn", "gspn", "gspn2"} <= set(OPERATOR_NAMES)
    assert {"cgspn", "gspn", "gspn2"} <= set(PROPAGATION_NAMES)


@every_operator
@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_shape_and_dtype_are_kept(name, height, width):
    x = torch.randn(2, height, width, DIM)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        y = build(name).to(dtype)(x.to(dtype))
        assert y.shape == x.shape
        assert y.dtype == dtype
        assert y.isfinite().all()


@every_operator
@pytest.mark.parametrize("shape", [(1, 30, DIM), (1, DIM, 5, 6), (DIM,)], ids=str)
def test_what_is_no_grid_of_tokens_is_named(name, shape):
    with pytest.raises(
        ValueError, match=rf"^x must have shape \(B, H, W, {DIM}\), got {re.escape(str(shape))}\.$"
    ):
        build(name)(torch.zeros(shape))


@every_operator
def test_a_picture_is_mixed_the_same_alone_and_in_a_batch(name):
    operator, x = build(name).double(), torch.randn(3, 5, 4, DIM, dtype=torch.float64)
    torch.testing.assert_close(operator(x)[1:2], operator(x[1:2]), rtol=1e-12, atol=1e-12)


@every_operator
def test_every_position_sees_every_other(name):
    operator = build(name).double()
    x = torch.randn(1, 4, 5, DIM, dtype=torch.float64, requires_grad=True)
    for position in ((0, 0), (3, 4), (2, 1)):
        (gradient,) = torch.autograd.grad(operator(x)[(0, *position)].sum(), x)
        assert (gradient.abs().sum(-1) > 0).all()


@every_propagation
def test_transposing_the_picture_is_swapping_the_directions(name):
    directions = ("tb", "rl", "lr")
    operator = build(name, directions=directions).double()
    other = build(name, directions=[TRANSPOSED[d] for d in directions]).double()
    other.load_state_dict(
        {key: t.transpose(2, 3) if t.ndim == 4 else t for key, t in operator.state_dict().items()}
    )
    x = torch.randn(2, 5, 3, DIM, dtype=torch.float64)
    torch.testing.assert_close(other(x.transpose(1, 2)), operator(x).transpose(1, 2), rtol=1e-12, atol=1e-12)


@every_propagation
@pytest.mark.parametrize("chunk", [1, 2])
def test_chunks_keep_information_inside(name, chunk):
    # A convolution would carry information across the border of two chunks.
    plain = {"depthwise_conv": False, "grn": False} if name == "gspn" else {}
    operator = build(name, directions=["tb"], chunk=chunk, **plain).double()
    x = torch.randn(1, 4, 5, DIM, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(operator(x)[0, 3, 2].sum(), x)
    seen = gradient[0].abs().sum((1, 2)) > 0
    assert seen.tolist() == [row > 3 - chunk for row in range(4)]


@every_propagation
def test_a_block_starts_as_its_mlp(name):
    operator, x = build(name, randomised=False), torch.randn(2, 5, 4, DIM)
    assert (operator(x) == 0).all()
    operator(x).sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in operator.parameters())


@every_propagation
def test_weights_start_near_a_third_and_gates_near_one(name):
    propagation = build(name, randomised=False).propagation
    features = torch.randn(2, 5, 4, propagation.generate.in_features)
    a, lam, u = propagation.scan_parameters(features)
    weights = a.sigmoid() / a.sigmoid().sum(2, keepdim=True)
    assert (weights - 1 / 3).abs().max() < 0.1
    assert (lam - 1).abs().mean() < 0.2
    assert (u - 1).abs().mean() < 0.2


@every_operator
def test_every_parameter_gets_a_gradient(name):
    operator = build(name)
    operator(torch.randn(2, 5, 4, DIM)).square().sum().backward()
    for key, parameter in operator.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().sum() > 0, key


@every_operator
def test_gradients_agree_with_finite_differences(name):
    operator = build(name).double()
    x = torch.randn(1, 2, 3, DIM, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(operator, (x,), fast_mode=True)


@every_operator
def test_autocast_to_bfloat16_stays_close(name):
    operator, x = build(name), 0.1 * torch.randn(2, 5, 4, DIM)
    expected = operator(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = operator(x)
    assert y.dtype == torch.bfloat16
    error = (y.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < 0.03


@every_operator
def test_state_survives_saving(name, tmp_path):
    operator, other, x = build(name), build(name), torch.randn(1, 3, 4, DIM)
    torch.save(operator.state_dict(), tmp_path / "operator.pt")
    other.load_state_dict(torch.load(tmp_path / "operator.pt", weights_only=True))
    assert torch.equal(other(x), operator(x))


@every_propagation
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(directions=[]), r"distinct names out of tb, bt, lr, rl, at least one; got \(\)\."),
        (dict(directions=["tb", "tb"]), r"at least one; got \('tb', 'tb'\)\."),
        (dict(directions=["up"]), r"'up'"),
        (dict(chunk=0), r"chunk=0 must be at least 1"),
    ],
    ids=["none", "repeated", "unknown", "chunk"],
)
def test_bad_scans_give_one_line(name, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        build(name, **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (dict(type="cgspn", gates="tanh"), "'linear', 'sigmoid'"),
        (dict(type="cgspn", state_norm="l2"), "'none', 'extent', 'rms'"),
        (dict(type="cgspn", latent_dim=0), r"latent_dim=0 must be at least 1\."),
        (dict(type="gspn2", proxy_dim=0), r"proxy_dim=0 must be at least 1\."),
        (dict(type="gspn", expansion=0), r"expansion=0 must be at least 1\."),
        (dict(type="gspn", projections=False), r"expansion=2 needs projections: true"),
        (dict(type="gspn", parameter_dim=0), r"parameter_dim=0 must be at least 1\."),
        (dict(type="attention", num_heads=3), r"num_heads=3 does not divide dim=32"),
        (dict(type="cgspn", latent=8), r"did you mean 'latent_dim'"),
        (dict(type="cgsp"), r"did you mean 'cgspn'"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_bad_arguments_give_one_line(node, message):
    with pytest.raises(ValueError, match=message) as error:
        OPERATORS.build(node, dim=DIM, num_heads=4)
    assert "\n" not in str(error.value)
