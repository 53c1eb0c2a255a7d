"""The operator against the float64 reference: values, gradients, edges and the low-precision rule."""

import pytest
import torch

from cgspn.ops import line_scan, row_stochastic, row_stochastic_ref
from cgspn.ops.directions import DIRECTIONS
from cgspn.ops.layout import strides_like

from .cases import CASES, LAYOUTS, NAMES, Case, draw, exact, ours
from .rule import check_rule, comparator, hold_to_rule, output_gradient

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def check_all(case, tensors, dtype, device):
    dy = output_gradient(case, dtype, device)
    y, grads = ours(tensors, case, dy)
    true_y, true_grads = exact(tensors, case, dy)
    scale = TOLERANCE[dtype] * max(case.shape[2:]) ** 0.5
    for name, got, true in zip(("y", *NAMES), (y, *grads), (true_y, *true_grads), strict=True):
        if got is None:
            continue
        limit = scale * max(1.0, true.abs().max().item() if true.numel() else 1.0)
        torch.testing.assert_close(
            got.cpu().double(), true, rtol=scale, atol=limit, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case, dtype, device, poisoned):
    check_all(case, draw(case, dtype, device), dtype, device)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("directions", [DIRECTIONS, ("rl", "tb", "lr", "bt"), ("bt", "lr")], ids="-".join)
@pytest.mark.parametrize(("batch", "shared"), [(1, False), (2, False), (3, False), (5, False), (5, True)])
def test_states_computed_again(batch, shared, directions, dtype, device, poisoned):
    case = Case(
        (batch, 16, 9, 11), directions, affinity_channels=1 if shared else None, chunk=4, layout="padded"
    )
    tensors = draw(case, dtype, device)
    dy = output_gradient(case, dtype, device)
    codes, mask = [DIRECTIONS.index(d) for d in directions], [True] * 4
    grads = torch.ops.cgspn.line_scan_backward(dy, *tensors, None, codes, case.chunk, True, True, mask)
    true_y, true_grads = exact(tensors, case, dy)
    hold_to_rule((None, *grads), (true_y, *true_grads), comparator(tensors, case, dy))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        Case((2, 16, 9, 33), layout="channels_last"),
        Case((2, 3, 31, 8)),
        Case((1, 1, 40, 23), layout="generated"),
        Case((1, 8, 1024, 3), layout="channels_last"),
        Case((2, 16, 9, 33), affinity_channels=1, layout="generated"),
    ],
    ids=str,
)
def test_low_precision_rule(case, dtype, device):
    tensors = draw(case, dtype, device)
    if case.shape[2] == 1024:  # gates near 1, where the state is longest
        tensors[2:] = [1 + (t - 1) / 32 for t in tensors[2:]]
    check_rule(case, tensors, dtype, device)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)], ids=str)
def test_empty(shape, layout, device):
    case = Case(shape, layout=layout)
    tensors = draw(case, torch.float32, device)
    y, grads = ours(tensors, case, torch.zeros(shape, device=device))
    assert y.shape == shape
    for grad, t in zip(grads, tensors, strict=True):
        assert grad.shape == t.shape
        assert not grad.any()


def test_gradients_that_must_be_exactly_zero(device, poisoned):
    case = Case((1, 3, 7, 5), directions=("tb",), chunk=3)
    tensors = draw(case, torch.float32, device)
    tensors[1][0, 0, :, 0] = -50.0
    _, (_, da, _, _) = ours(tensors, case, torch.ones(case.shape, device=device))
    assert not da[:, :, :, :, ::3].any()
    assert not da[0, 0, :, 0].any()
    weights = Case((1, 3, 7, 5), directions=("tb",), normalize=False)
    _, (_, da, _, _) = ours(
        draw(weights, torch.float32, device), weights, torch.ones(case.shape, device=device)
    )
    assert not da[:, :, 0, :, :, 0].any()
    assert not da[:, :, 2, :, :, -1].any()


def test_entries_outside_the_line_are_ignored(device):
    case = Case((1, 2, 4, 5), directions=("tb", "lr"), normalize=False)
    tensors = draw(case, torch.float32, device)
    before = line_scan(*tensors, **case.options)
    for d, edge in ((0, (..., 0)), (1, (..., 0, slice(None)))):
        tensors[1][:, d, 0][edge] = torch.nan
    torch.testing.assert_close(line_scan(*tensors, **case.options), before, rtol=0, atol=0)


def test_nan_spreads_only_where_the_recurrence_takes_it(device):
    case = Case((1, 2, 6, 7), directions=("tb",))
    tensors = draw(case, torch.float32, device)
    tensors[0][0, 0, 3, 3] = torch.nan
    nan = line_scan(*tensors, **case.options).isnan()
    expected = torch.zeros_like(nan)
    for i in range(3, 6):
        expected[0, 0, i, max(0, 6 - i) : i + 1] = True
    assert torch.equal(nan, expected)


@pytest.mark.parametrize("directions", [("tb",), ("rl", "bt"), DIRECTIONS], ids=str)
def test_directions_are_one_operator_turned(directions, device):
    turned = {"tb": "lr", "lr": "tb", "bt": "rl", "rl": "bt"}
    case = Case((2, 4, 5, 8), directions=directions)
    tensors = draw(case, torch.float64, device)
    y = line_scan(*tensors, **case.options)
    options = case.options | {"directions": tuple(turned[d] for d in directions)}
    torch.testing.assert_close(
        line_scan(*(t.transpose(-1, -2) for t in tensors), **options), y.transpose(-1, -2)
    )


def test_chunks_are_scans_of_their_own(device):
    case = Case((1, 3, 7, 4), directions=("tb", "bt"), chunk=3, reduce="none")
    tensors = draw(case, torch.float64, device)
    y = line_scan(*tensors, **case.options)
    options = case.options | {"chunk": None}
    for d, blocks in enumerate([((0, 3), (3, 6), (6, 7)), ((4, 7), (1, 4), (0, 1))]):
        for low, high in blocks:
            part = line_scan(*(t[..., low:high, :] for t in tensors), **options)
            torch.testing.assert_close(y[:, d, :, low:high], part[:, d])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 3, 4, 8, 12, 20])
def test_bitwise_repeatable_for_any_number_of_threads(channels, layout, device):
    case = Case((2, channels, 19, 23), layout=layout)
    tensors = draw(case, torch.float32, device)
    dy = torch.ones(case.shape, device=device)
    threads = torch.get_num_threads()
    answers = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        answers.append(ours(tensors, case, dy))
    torch.set_num_threads(threads)
    for y, grads in answers[1:]:
        for got, first in zip((y, *grads), (answers[0][0], *answers[0][1]), strict=True):
            assert torch.equal(got, first)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_of_outputs(layout, device):
    case = Case((2, 6, 5, 4), layout=layout)
    tensors = draw(case, torch.float32, device)
    y, grads = ours(tensors, case, torch.ones(case.shape, device=device))
    assert y.stride() == strides_like(tensors[0])
    for grad, t in zip(grads, tensors, strict=True):
        assert grad.stride() == strides_like(t)


@pytest.mark.parametrize(
    "case", [Case(), Case((2, 9, 5, 6), layout="generated"), Case((1, 1, 3, 3))], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_row_stochastic(case, dtype, device, poisoned):
    a = draw(case, dtype, device)[1].requires_grad_()
    w = row_stochastic(a)
    torch.testing.assert_close(w.sum(2), torch.ones_like(w[:, :, 0]))
    true_a = a.detach().double().requires_grad_()
    true = row_stochastic_ref(true_a)
    torch.testing.assert_close(w.double(), true, rtol=1e-5, atol=1e-6)
    dw = torch.randn(w.shape, dtype=dtype, device=device)
    (da,) = torch.autograd.grad(w, a, dw)
    (true_da,) = torch.autograd.grad(true, true_a, dw.double())
    torch.testing.assert_close(da.double(), true_da, rtol=1e-5, atol=1e-6)


def test_row_stochastic_is_the_inside_of_line_scan(device):
    case = Case((1, 3, 5, 6))
    x, a, lam, u = draw(case, torch.float64, device)
    torch.testing.assert_close(
        line_scan(x, row_stochastic(a), lam, u, normalize=False), line_scan(x, a, lam, u)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"directions": ()}, "direction"),
        ({"directions": ("tb", "tb")}, "tb"),
        ({"directions": ("up",)}, "up"),
        ({"chunk": 0}, "chunk"),
        ({"reduce": "mean"}, "mean"),
        ({"normalize": "no"}, "normalize must be True or False, got 'no'"),
    ],
    ids=str,
)
def test_bad_options(change, message, device):
    case = Case()
    with pytest.raises(ValueError, match=message):
        line_scan(*draw(case, torch.float32, device), **(case.options | change))


@pytest.mark.parametrize("name", NAMES)
def test_bad_tensors(name, device):
    tensors = dict(zip(NAMES, draw(Case(), torch.float32, device), strict=True))
    for bad in (
        tensors[name][..., :-1],
        tensors[name][0],
        tensors[name].to(torch.int32),
        tensors[name].half(),
    ):
        with pytest.raises(ValueError, match="must"):
            line_scan(**(tensors | {name: bad}))
