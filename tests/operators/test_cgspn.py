import pytest
import torch

from cgspn.operators.cgspn import CGSPN, default_latent_dim


@pytest.mark.parametrize(
    ("dim", "latent_dim"),
    [(128, 32), (192, 48), (384, 64), (768, 64), (1024, 64), (1152, 64), (2304, 128), (8, 16)],
)
def test_default_latent_width(dim, latent_dim):
    assert default_latent_dim(dim) == latent_dim
    with torch.device("meta"):
        assert CGSPN(dim).down.out_features == latent_dim


def test_rows_of_the_linear_layer_are_affinity_then_input_gate_then_output_gate():
    operator = CGSPN(16, latent_dim=4, directions=("tb", "lr", "rl"))
    a, lam, u = operator.propagation.scan_parameters(torch.randn(2, 5, 6, 4))
    assert (a.shape, lam.shape, u.shape) == ((2, 3, 3, 4, 5, 6), (2, 3, 4, 5, 6), (2, 3, 4, 5, 6))
    assert (
        a.untyped_storage().data_ptr() == lam.untyped_storage().data_ptr() == u.untyped_storage().data_ptr()
    )
    row = operator.propagation.generate(torch.zeros(1, 1, 1, 4)).flatten()
    assert row.tolist() == [0.0] * 36 + [1.0] * 24


def rms(x):
    return float(x.square().mean().sqrt())


@pytest.mark.parametrize("state_norm", ["none", "extent", "rms"])
def test_state_growth_with_the_grid(state_norm, record_property):
    operator = CGSPN(64, latent_dim=8, state_norm=state_norm)
    # A mean that is not zero is what weights that sum to one add up line by line.
    picture = torch.randn(1, 147, 147, 8) + 0.5
    found = {}
    with torch.no_grad():
        for grid in (27, 37, 74, 147):
            latent = picture[:, :grid, :grid]
            found[grid] = rms(operator.propagation(latent, latent))
            record_property(f"rms_{state_norm}_{grid}", found[grid])
    growth = found[147] / found[27]
    if state_norm == "none":
        assert 4 < growth < 147 / 27 * 1.2
    else:
        assert 0.8 < growth < 1.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(gates="tanh"), r"gates='tanh' is unknown; valid: linear, sigmoid\."),
        (dict(state_norm="l2"), r"state_norm='l2' is unknown; valid: none, extent, rms\."),
        (dict(directions=("up",)), r"distinct names out of tb, bt, lr, rl, at least one; got \('up',\)\."),
    ],
    ids=["gates", "state_norm", "directions"],
)
def test_a_constructor_checks_by_itself_too(arguments, message):
    with pytest.raises(ValueError, match=message):
        CGSPN(32, **arguments)
