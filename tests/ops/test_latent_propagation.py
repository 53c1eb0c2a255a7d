"""Latent propagation against its formula, and what torch needs of it; on a GPU the fused kernel is meant."""

import logging
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cgspn.operators import CGSPN
from cgspn.ops import latent_propagation, latent_registration, library, line_scan_ref
from cgspn.ops.directions import DIRECTIONS, direction_codes
from cgspn.ops.latent_propagation import _log_choice, latent_backend, split_parameters
from cgspn.ops.layout import strides_like

from .cases import Case, lay_out
from .rule import rms, stored_scan

NAMES = ("y", "x", "weight", "bias")
needs_native = pytest.mark.skipif(
    not library.active(torch.device("cpu")), reason="the native library is not active"
)
# (B, C, H, W), directions, whether the affinity is shared, chunk.
CASES = [
    ((2, 3, 5, 7), DIRECTIONS, False, None),
    ((2, 3, 5, 7), DIRECTIONS, True, 2),
    ((1, 32, 1, 1), DIRECTIONS, False, None),
    ((1, 32, 9, 1), ("lr",), False, 4),
    ((2, 48, 6, 17), ("bt", "lr"), True, None),
    ((1, 64, 17, 8), DIRECTIONS, False, 5),
    ((1, 64, 33, 19), ("rl", "tb", "lr"), False, None),
    ((3, 64, 7, 26), ("rl", "lr"), False, None),
]


def case_id(value):
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


every_case = pytest.mark.parametrize(("shape", "directions", "shared", "chunk"), CASES, ids=case_id)


def draw(shape, directions=DIRECTIONS, shared=False, dtype=torch.float32, device="cpu"):
    """Channels-last x, weight and bias; gates near 1."""
    generator = torch.Generator().manual_seed(3)
    channels, num = shape[1], len(directions)
    logits = 3 * num * (1 if shared else channels)
    rows = logits + 2 * num * channels
    x = torch.randn(shape, generator=generator)
    weight = torch.randn(rows, channels, generator=generator) / channels**0.5
    bias = 0.3 * torch.randn(rows, generator=generator)
    bias[logits:] += 1
    weight[logits:] *= 0.3
    x = x.to(memory_format=torch.channels_last)
    return [t.to(dtype).to(device) for t in (x, weight, bias)]


def formula(x, weight, bias, directions=DIRECTIONS, shared=False, chunk=None):
    p = torch.nn.functional.linear(x.permute(0, 2, 3, 1), weight, bias)
    parameters = split_parameters(p, len(directions), 1 if shared else x.shape[1])
    return line_scan_ref(x, *parameters, directions=directions, chunk=chunk)


def answers(function, tensors, dy):
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_values_and_gradients(shape, directions, shared, chunk, dtype, device, poisoned):
    tensors = draw(shape, directions, shared, dtype, device)
    dy = torch.randn(shape, generator=torch.Generator().manual_seed(4)).to(dtype).to(device)
    options = {"directions": directions, "chunk": chunk}
    got = answers(lambda *t: latent_propagation(*t, **options), tensors, dy)
    exact = answers(
        lambda *t: formula(*t, shared=shared, **options),
        [t.cpu().double() for t in tensors],
        dy.cpu().double(),
    )
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4}[dtype]
    for name, mine, true in zip(NAMES, got, exact, strict=True):
        error = (mine.cpu().double() - true).abs().max() / true.abs().max().clamp(min=1)
        assert error <= tolerance, name


class Stored(torch.autograd.Function):
    """A value that is kept in a dtype, and whose gradient is too."""

    @staticmethod
    def forward(ctx, value, dtype):
        ctx.dtype = dtype
        return value.to(dtype).float()

    @staticmethod
    def backward(ctx, grad):
        return grad.to(ctx.dtype).float(), None


@needs_native
@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_rule(shape, directions, shared, chunk, dtype, device, poisoned):
    """The fused forward pass stores y only; the unfused one and the backward pass store the parameters."""
    case = Case(shape, directions, chunk=chunk)
    tensors = draw(shape, directions, shared, dtype, device)
    dy = torch.randn(shape, generator=torch.Generator().manual_seed(4)).to(dtype).to(device)

    def comparator(stored):
        def run(x, weight, bias):
            p = torch.nn.functional.linear(x.permute(0, 2, 3, 1), weight, bias)
            p = Stored.apply(p, dtype) if stored else p
            return stored_scan(
                x, *split_parameters(p, len(directions), 1 if shared else shape[1]), case, dtype
            )

        return [t.to(dtype) for t in answers(run, [t.cpu().float() for t in tensors], dy.cpu().float())]

    fused = device.type == "cuda" and shape[1] in (32, 48, 64)
    theirs = [comparator(not fused)[0], *comparator(True)[1:]]
    got = answers(lambda *t: latent_propagation(*t, directions=directions, chunk=chunk), tensors, dy)
    exact = answers(
        lambda *t: formula(*t, directions, shared, chunk),
        [t.cpu().double() for t in tensors],
        dy.cpu().double(),
    )
    for name, mine, other, true in zip(NAMES, got, theirs, exact, strict=True):
        error, allowed = (mine.cpu().double() - true).abs(), (other.double() - true).abs()
        ulp = torch.finfo(dtype).eps * 2.0 ** torch.floor(torch.log2(true.abs().max())).item()
        assert error.max() <= 2 * allowed.max() + ulp, name
        assert rms(error) <= 1.5 * rms(allowed) + ulp, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bitwise_repeatable(dtype, device):
    tensors = draw((3, 64, 9, 21), dtype=dtype, device=device)
    dy = torch.ones_like(tensors[0])
    first, second = (answers(latent_propagation, tensors, dy) for _ in range(2))
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one, two)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_do_not_depend_on_the_layout_of_dy(dtype, device):
    """The gradient of a sum is one element, expanded; compiled code lays the same values out."""
    tensors = draw((2, 32, 4, 5), dtype=dtype, device=device)
    one = torch.ones((), dtype=dtype, device=device).expand(tensors[0].shape)
    dense = [one.contiguous(memory_format=f) for f in (torch.channels_last, torch.contiguous_format)]
    first, *others = (answers(latent_propagation, tensors, dy) for dy in (one, *dense))
    for other in others:
        for mine, theirs in zip(first, other, strict=True):
            assert torch.equal(mine, theirs)


@needs_native
def test_the_backward_pass_may_go_image_by_image(device, monkeypatch):
    tensors = draw((5, 4, 6, 3), dtype=torch.float64, device=device)
    dy = torch.randn_like(tensors[0])
    whole = answers(latent_propagation, tensors, dy)
    monkeypatch.setattr(latent_registration, "PARAMETER_BYTES", 2 * 6 * 3 * len(tensors[2]) * 8)
    for one, two in zip(answers(latent_propagation, tensors, dy), whole, strict=True):
        torch.testing.assert_close(one, two)


@needs_native
def test_no_parameter_is_kept_for_the_backward_pass(device):
    tensors = [t.requires_grad_() for t in draw((1, 8, 6, 6), device=device)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        latent_propagation(*tensors)
    assert sum(kept) == sum(t.numel() for t in tensors)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "expanded"])
def test_strides_of_outputs(layout, device):
    x, weight, bias = draw((2, 4, 5, 3), device=device)
    x = lay_out(x, layout)
    y, dx, dweight, _ = answers(latent_propagation, [x, weight, bias], torch.ones(x.shape, device=device))
    torch.testing.assert_close(y, formula(x, weight, bias))
    assert y.stride() == strides_like(x)
    if library.active(device):
        assert dx.stride() == strides_like(x)
    assert dweight.stride() == weight.stride()


@pytest.mark.parametrize("shape", [(0, 4, 5, 3), (2, 4, 0, 3), (2, 4, 5, 0)], ids=case_id)
def test_empty(shape, device):
    y, dx, dweight, dbias = answers(
        latent_propagation, draw(shape, device=device), torch.zeros(shape, device=device)
    )
    assert y.shape == dx.shape == shape
    assert not dweight.any()
    assert not dbias.any()


def test_nan_spreads_only_where_the_recurrence_takes_it(device):
    x, weight, bias = draw((1, 64, 6, 17), ("tb",), dtype=torch.bfloat16, device=device)
    x[0, 0, 3, 3] = torch.nan
    nan = latent_propagation(x, weight, bias, directions=("tb",)).isnan()
    for i in range(6):
        low, high = (max(0, 6 - i), i + 1) if i >= 3 else (0, 0)
        assert nan[0, :, i, low:high].all()
        assert not nan[0, :, i, :low].any()
        assert not nan[0, :, i, high:].any()


@needs_native
def test_gradcheck(device):
    for shared in (False, True):
        tensors = [t.requires_grad_() for t in draw((2, 2, 3, 4), DIRECTIONS, shared, torch.float64, device)]
        assert torch.autograd.gradcheck(lambda *t: latent_propagation(*t, chunk=2), tensors)


@needs_native
def test_opcheck(device):
    codes = direction_codes(DIRECTIONS)
    for dtype in (torch.float32, torch.bfloat16):
        tensors = draw((2, 32, 4, 5), dtype=dtype, device=device)
        leaves = [t.detach().requires_grad_() for t in tensors]
        torch.library.opcheck(torch.ops.cgspn.latent_propagation, (*leaves, codes, None))
        for mask in ([True] * 3, [False, True, False]):
            arguments = (torch.ones_like(tensors[0]), *tensors, codes, 2, mask)
            torch.library.opcheck(torch.ops.cgspn.latent_propagation_backward, arguments)
        p = torch.nn.functional.linear(tensors[0].permute(0, 2, 3, 1), *tensors[1:])
        arguments = (torch.ones_like(tensors[0]), tensors[0], p, codes, 2)
        torch.library.opcheck(torch.ops.cgspn.latent_scan_backward, arguments)


@needs_native
@pytest.mark.slow
def test_compiled_equals_eager_without_recompiling(device):
    torch._dynamo.reset()
    operator = CGSPN(64, latent_dim=32).to(device)
    torch.nn.init.normal_(operator.up.weight)
    compiled = torch.compile(operator, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True), latent_backend("fused"):
        for shape in ((2, 5, 7), (3, 8, 9), (4, 11, 6)):
            x = torch.randn(*shape, 64, device=device)
            results = []
            for function in (operator, compiled):
                leaf = x.clone().requires_grad_()
                y = function(leaf)
                results.append([y, *torch.autograd.grad(y.square().sum(), [leaf, *operator.parameters()])])
            for eager, other in zip(*results, strict=True):
                torch.testing.assert_close(other, eager, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype, device):
    tensors = draw((1, 32, 4, 5), device=device)
    with torch.autocast(device.type, dtype):
        y = latent_propagation(*tensors)
        assert latent_propagation(*(t.double() for t in tensors)).dtype == torch.float64
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), formula(*tensors), rtol=0.1, atol=0.1)


@needs_native
def test_vmap(device):
    tensors = [torch.stack([t, 2 * t]) for t in draw((2, 3, 4, 5), dtype=torch.float64, device=device)]
    expected = torch.stack([latent_propagation(*(t[i] for t in tensors)) for i in range(2)])
    torch.testing.assert_close(torch.vmap(latent_propagation)(*tensors), expected)
    first = tensors[1][0], tensors[2][0]
    got = torch.vmap(latent_propagation, in_dims=(0, None, None))(tensors[0], *first)
    torch.testing.assert_close(got[1], latent_propagation(tensors[0][1], *first))


@needs_native
def test_what_is_not_differentiable_raises(device):
    tensors = [t.requires_grad_() for t in draw((1, 2, 3, 4), dtype=torch.float64, device=device)]
    (dx, *_) = torch.autograd.grad(latent_propagation(*tensors).square().sum(), tensors, create_graph=True)
    with pytest.raises(RuntimeError, match="latent_propagation_backward"):
        dx.sum().backward()
    plain = [t.detach() for t in tensors]
    with pytest.raises(RuntimeError, match="latent_propagation"):
        torch.func.jvp(latent_propagation, tuple(plain), tuple(plain))
    with pytest.raises(RuntimeError, match="latent_propagation"):
        torch.func.grad(lambda x: latent_propagation(x, *plain[1:]).sum())(plain[0])


@needs_native
def test_flops_are_those_of_the_parts(device):
    x, weight, bias = draw((2, 6, 5, 7), device=device)
    with FlopCounterMode(display=False) as counter:
        latent_propagation(x, weight, bias)
    assert counter.get_total_flops() == 2 * 5 * 7 * (2 * 6 * len(bias) + 4 * (10 * 6 + 12 * 6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"directions": ()}, "direction"),
        ({"directions": ("tb", "lr")}, "weight"),
        ({"chunk": 0}, "chunk"),
        ({"x": torch.zeros(3, 4, 5)}, "x must"),
        ({"x": torch.zeros(2, 3, 4, 5, dtype=torch.int32)}, "x must"),
        ({"x": torch.zeros(2, 4, 4, 5)}, "weight"),
        ({"weight": torch.zeros(59, 3)}, "weight"),
        ({"weight": torch.zeros(60, 3).half()}, "weight"),
        ({"bias": torch.zeros(59)}, "bias"),
        ({"bias": torch.zeros(60).double()}, "bias"),
    ],
    ids=str,
)
def test_bad_arguments(change, message):
    arguments = dict(zip(NAMES[1:], draw((2, 3, 4, 5)), strict=True))
    with pytest.raises(ValueError, match=message):
        latent_propagation(**(arguments | change))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("directions", [DIRECTIONS, ("rl", "tb")], ids="-".join)
def test_the_operator_computes_the_same_both_ways(shared, directions, device):
    operator = (
        CGSPN(48, 32, directions, chunk=3, shared_affinity=shared, state_norm="rms").to(device).double()
    )
    torch.nn.init.normal_(operator.up.weight)
    x = torch.randn(2, 5, 7, 48, dtype=torch.float64, device=device)
    results = []
    for name in ("fused", "unfused"):
        with latent_backend(name):
            leaf = x.clone().requires_grad_()
            y = operator(leaf)
            results.append([y, *torch.autograd.grad(y.square().sum(), [leaf, *operator.parameters()])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("change", [{"gates": "sigmoid"}, {"state_norm": "extent"}], ids=str)
def test_what_the_kernel_cannot_make_stays_unfused(change, device):
    operator, x = CGSPN(64, 32, **change).to(device), torch.randn(1, 4, 5, 64, device=device)
    with latent_backend("fused"):
        forced = operator(x)
    torch.testing.assert_close(forced, operator(x), rtol=0, atol=0)


def test_the_choice_is_logged_once_with_its_reason(caplog):
    _log_choice.cache_clear()
    operator, x = CGSPN(40, 16), torch.randn(1, 2, 3, 40)
    with caplog.at_level(logging.INFO, "cgspn"):
        for _ in range(3):
            operator(x)
    assert [record.getMessage() for record in caplog.records] == [
        "latent propagation runs unfused (CGSPN_LATENT=auto): the device is cpu"
    ]


def test_an_unknown_backend_is_an_error():
    with pytest.raises(ValueError, match=r"fastest.*auto, fused, unfused"), latent_backend("fastest"):
        pass


def test_the_environment_chooses():
    environment = {"CGSPN_LATENT": "fused", "PATH": "/usr/bin:/bin"}
    run = subprocess.run(
        [sys.executable, "-m", "cgspn.env"], env=environment, capture_output=True, text=True, check=True
    )
    assert "fused (CGSPN_LATENT)" in run.stdout
