"""Bad tensors and arguments for the operators; what is accepted equals the reference."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.fuzz.harness import REFUSED, attempt, examples

from cgspn import ops

SIZES = st.integers(0, 4)
DTYPES = st.sampled_from(
    [torch.float32] * 6
    + [torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.complex64]
)
DIRECTIONS = st.one_of(
    st.lists(st.sampled_from(ops.DIRECTIONS), min_size=1, max_size=4, unique=True),
    st.lists(st.sampled_from([*ops.DIRECTIONS, "up", "", None, 3]), max_size=5),
    st.sampled_from(["tb", "tblr", None, 3, {"tb": 1}, b"tb", [["tb"]]]),
)
CHUNKS = st.sampled_from([None, None, 1, 2, 3, 100, 0, -1, 2**31, 2**63, 2**80, True, 2.0, "2", [1]])
JUNK = st.sampled_from(
    [None, 3, "x", [1.0], torch.zeros(()), torch.eye(3).to_sparse(), torch.empty(2, device="meta")]
)


@st.composite
def tensors(draw, shape, dtype):
    """A tensor of a shape and dtype, now and then with something wrong about it."""
    wrong = draw(st.integers(0, 11))
    if wrong == 0:
        return draw(JUNK)
    if wrong == 1:
        shape = draw(st.permutations(shape))
    if wrong == 2 and shape:
        shape = shape[:-1]
    if wrong == 3:
        shape = [draw(SIZES), *shape[1:]]
    if wrong == 4:
        dtype = draw(DTYPES)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 3)))
    tensor = torch.randn(list(shape), generator=generator)
    if draw(st.booleans()) and tensor.dim() > 1:
        tensor = tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    return tensor.to(dtype)


@examples(500)
@given(data=st.data())
def test_line_scan(data):
    batch, channels, height, width = [data.draw(SIZES) for _ in range(4)]
    directions = data.draw(DIRECTIONS)
    number = len(directions) if isinstance(directions, list) else 1
    dtype, shared = data.draw(DTYPES), data.draw(st.booleans())
    affinity = [batch, number, 3, 1 if shared else channels, height, width]
    gate = [batch, number, channels, height, width]
    arguments = [
        data.draw(tensors([batch, channels, height, width], dtype)),
        data.draw(tensors(affinity, dtype)),
    ]
    arguments += [data.draw(st.one_of(st.none(), tensors(gate, dtype))) for _ in range(2)]
    options = {
        "directions": directions,
        "chunk": data.draw(CHUNKS),
        "normalize": data.draw(st.booleans()),
        "reduce": data.draw(st.sampled_from(["sum", "sum", "none", "mean", None, 1])),
    }
    found = attempt(ops.line_scan, *arguments, **options)
    if found is REFUSED:
        return
    exact = [None if t is None else t.double() for t in arguments]
    options["directions"] = [directions] if isinstance(directions, str) else directions
    expected = ops.line_scan_ref(*exact, **options)
    rounding = {torch.float64: 1e-10, torch.float32: 1e-4}.get(found.dtype, 5e-2)
    torch.testing.assert_close(found.double(), expected, rtol=rounding, atol=rounding)


@examples(150)
@given(data=st.data())
def test_row_stochastic(data):
    directions = data.draw(DIRECTIONS)
    number = len(directions) if isinstance(directions, list) else 1
    shape = [data.draw(SIZES), number, 3, data.draw(SIZES), data.draw(SIZES), data.draw(SIZES)]
    a = data.draw(tensors(shape, data.draw(DTYPES)))
    found = attempt(ops.row_stochastic, a, directions=directions)
    if found is REFUSED:
        return
    assert found.shape == a.shape
    sums = found.double().sum(2)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=2e-2)


@examples(150)
@given(data=st.data())
def test_latent_propagation(data):
    batch, channels, height, width = [data.draw(SIZES) for _ in range(4)]
    directions, dtype = data.draw(DIRECTIONS), data.draw(DTYPES)
    number = len(directions) if isinstance(directions, list) else 1
    rows = number * (3 + 2 * channels) if data.draw(st.booleans()) else 5 * number * channels
    x = data.draw(tensors([batch, channels, height, width], dtype))
    weight, bias = data.draw(tensors([rows, channels], dtype)), data.draw(tensors([rows], dtype))
    options = {"directions": directions, "chunk": data.draw(CHUNKS)}
    found = attempt(ops.latent_propagation, x, weight, bias, **options)
    if found is REFUSED:
        return
    expected = attempt(ops.latent_propagation, x.double(), weight.double(), bias.double(), **options)
    assert found.shape == x.shape
    if found.dtype in (torch.float32, torch.float64):
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


@examples(100)
@given(data=st.data())
def test_token_linear(data):
    length, channels, narrow, dtype = data.draw(SIZES), data.draw(SIZES), data.draw(SIZES), data.draw(DTYPES)
    x, h = data.draw(tensors([2, length, channels], dtype)), data.draw(tensors([2, length, narrow], dtype))
    down, up = data.draw(tensors([narrow, channels], dtype)), data.draw(tensors([channels, narrow], dtype))
    small, wide = data.draw(tensors([narrow], dtype)), data.draw(tensors([channels], dtype))
    found = attempt(ops.layer_norm_linear, x, wide, wide, down, small, 1e-6)
    assert found is REFUSED or found.shape == (*x.shape[:-1], down.shape[0])
    found = attempt(ops.linear_residual, h, up, wide, x)
    assert found is REFUSED or found.shape == x.shape
