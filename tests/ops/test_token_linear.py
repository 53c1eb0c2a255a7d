"""The token-wise linear operators: definition, what torch needs of them, and the CUDA kernels' error."""

import pytest
import torch

from cgspn.ops import layer_norm_linear, library, linear_residual
from cgspn.ops.directions import DIRECTIONS, direction_codes
from cgspn.ops.token_linear import CHOICE

EPS = 1e-6
native = pytest.mark.skipif(
    not library.active(torch.device("cpu")), reason="the native library is not active"
)


def narrowing(tokens, channels, width, dtype, device, mean=0.0):
    """x, norm_weight, norm_bias, weight, bias."""
    draw = torch.Generator().manual_seed(tokens)
    sizes = ((tokens, channels), (channels,), (channels,), (width, channels), (width,))
    x, *rest = (torch.randn(size, generator=draw) for size in sizes)
    x = x + mean * (1 + 0.1 * torch.randn(tokens, 1, generator=draw))
    scales = (0.3, 0.2, channels**-0.5, 0.1)
    rest = [scale * t + (i == 0) for i, (scale, t) in enumerate(zip(scales, rest, strict=True))]
    return [t.to(device, dtype) for t in (x, *rest)]


def widening(tokens, width, channels, dtype, device):
    """h, weight, bias, x, scale."""
    draw = torch.Generator().manual_seed(tokens)
    sizes = ((tokens, width), (channels, width), (channels,), (tokens, channels), (channels,))
    return [torch.randn(size, generator=draw).to(device, dtype) for size in sizes]


def formula_down(x, norm_weight, norm_bias, weight, bias):
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt()
    return (normed * norm_weight + norm_bias) @ weight.T + bias


def formula_up(h, weight, bias, x, scale=None):
    return x + (h @ weight.T + bias) * (1 if scale is None else scale)


def down(*tensors):
    return torch.ops.cgspn.layer_norm_linear(*tensors, EPS)


def up(h, weight, bias, x, scale=None):
    return torch.ops.cgspn.linear_residual(h, weight, bias, scale, x)


@pytest.mark.parametrize("grads", [True, False])
def test_public_functions_follow_their_formulas(grads, device):
    for function, formula, tensors in (
        (lambda *t: layer_norm_linear(*t, EPS), formula_down, narrowing(7, 64, 16, torch.float64, device)),
        (linear_residual, formula_up, widening(7, 16, 64, torch.float64, device)),
    ):
        leaves = [t.requires_grad_(grads) for t in tensors]
        torch.testing.assert_close(function(*leaves), formula(*leaves))


@native
@pytest.mark.parametrize("scaled", [True, False])
def test_gradcheck(scaled, device):
    tensors = [t.requires_grad_() for t in narrowing(3, 8, 4, torch.float64, device)]
    wide = [t.requires_grad_() for t in widening(3, 4, 8, torch.float64, device)[: 5 if scaled else 4]]
    if device.type == "cpu":
        assert torch.autograd.gradcheck(down, tensors)
        assert torch.autograd.gradcheck(up, wide)
    assert torch.autograd.gradcheck(lambda *t: layer_norm_linear(*t, EPS), tensors)
    assert torch.autograd.gradcheck(linear_residual, wide)


@native
def test_opcheck(device):
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    narrow, wide = narrowing(6, 64, 16, dtype, device), widening(6, 16, 64, dtype, device)
    for tensors in (narrow, wide):
        tensors[0] = tensors[0].view(2, 3, -1)
        for tensor in tensors:
            tensor.requires_grad_()
    wide[3] = wide[3].detach().view(2, 3, -1)
    torch.library.opcheck(torch.ops.cgspn.layer_norm_linear, (*narrow, EPS))
    h, weight, bias, x, scale = wide
    torch.library.opcheck(torch.ops.cgspn.linear_residual, (h, weight, bias, scale, x))
    torch.library.opcheck(torch.ops.cgspn.linear_residual, (h, weight, bias, None, x))


@native
def test_autocast(device):
    with torch.autocast(device.type, torch.bfloat16):
        assert down(*narrowing(3, 64, 16, torch.float32, device)).dtype == torch.bfloat16
        assert up(*widening(3, 16, 64, torch.float32, device)).dtype == torch.bfloat16


def sublayer(batch, height, width, channels, narrow, dtype, device, directions=DIRECTIONS, shared=False):
    """The tensors of latent_residual up to eps."""
    draw = torch.Generator().manual_seed(channels)
    x, norm_weight, norm_bias, *down = narrowing(batch * height * width, channels, narrow, dtype, device)
    rows = len(directions) * (3 * (1 if shared else narrow) + 2 * narrow)
    weight = torch.randn(rows, narrow, generator=draw) / narrow**0.5
    bias = torch.randn(rows, generator=draw)
    _, *up, _, scale = widening(1, narrow, channels, dtype, device)
    x = x.unflatten(0, (batch, height, width))
    return [x, norm_weight, norm_bias, *down, weight.to(device, dtype), bias.to(device, dtype), *up, scale]


def one_by_one(tensors, eps, codes, chunk):
    x, norm_weight, norm_bias, down_weight, down_bias, weight, bias, up_weight, up_bias, scale = tensors
    ops = torch.ops.cgspn
    latent = ops.layer_norm_linear(x, norm_weight, norm_bias, down_weight, down_bias, eps)
    mixed = ops.latent_propagation(latent.permute(0, 3, 1, 2), weight, bias, codes, chunk)
    return ops.linear_residual(mixed.permute(0, 2, 3, 1), up_weight, up_bias, scale, x)


@native
@pytest.mark.parametrize("directions", [DIRECTIONS, ("rl", "tb")], ids="-".join)
def test_the_whole_sublayer_in_one_call(directions, device):
    dtype = torch.float64 if device.type == "cpu" else torch.bfloat16
    tensors = sublayer(2, 5, 7, 64, 32, dtype, device, directions)
    arguments = (EPS, direction_codes(directions), 3)
    y = torch.ops.cgspn.latent_residual(*tensors, *arguments)
    torch.testing.assert_close(y, one_by_one(tensors, *arguments), rtol=0, atol=0)
    torch.library.opcheck(torch.ops.cgspn.latent_residual, (*tensors, *arguments))
    tensors[0].requires_grad_()
    with pytest.raises(RuntimeError, match="latent_residual"):
        torch.ops.cgspn.latent_residual(*tensors, *arguments).sum().backward()


@pytest.mark.cuda
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("batch", "height", "width", "channels", "narrow"),
    [
        (8, 225, 224, 64, 32),
        (9, 70, 75, 128, 32),
        (11, 90, 51, 192, 64),
        (1, 33, 147, 1152, 64),
        (3, 20, 11, 64, 48),
        (2, 3, 500, 64, 64),
    ],
)
def test_cuda_the_whole_sublayer_is_what_its_parts_are(batch, height, width, channels, narrow, shared):
    """Bit by bit, also where groups of images overlap, on another stream and in a graph."""
    tensors = sublayer(batch, height, width, channels, narrow, torch.bfloat16, "cuda", shared=shared)
    arguments = (EPS, direction_codes(DIRECTIONS), None)
    want = one_by_one(tensors, *arguments)
    assert torch.equal(torch.ops.cgspn.latent_residual(*tensors, *arguments), want)
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        got = torch.ops.cgspn.latent_residual(*tensors, *arguments)
    torch.cuda.current_stream().wait_stream(side)
    assert torch.equal(got, want)
    with torch.cuda.graph(graph):
        got = torch.ops.cgspn.latent_residual(*tensors, *arguments)
    for _ in range(3):
        got.fill_(torch.nan)
        graph.replay()
        assert torch.equal(got, want)


def error(y, truth):
    difference = (y.double() - truth).abs()
    return difference.max(), difference.square().mean().sqrt()


def holds(y, plain, truth):
    """The error rule, with the composition of torch's operators as comparator."""
    (ours_max, ours_rms), (max_, rms) = error(y, truth), error(plain, truth)
    unit = torch.finfo(y.dtype).eps * 2.0 ** truth.abs().max().log2().floor()
    return y.isfinite().all() and ours_max <= 2 * max_ + unit and ours_rms <= 1.5 * rms + unit / 1000


SIZES = [(1, 64, 16), (15, 128, 48), (777, 1152, 64), (5000, 192, 32), (16 * 8 * 132 + 1, 768, 64)]


@pytest.mark.cuda
@pytest.mark.parametrize("mean", [0.0, 3.0, 300.0])
@pytest.mark.parametrize(("tokens", "channels", "width"), SIZES)
def test_cuda_layer_norm_linear(tokens, channels, width, mean):
    tensors = narrowing(tokens, channels, width, torch.bfloat16, "cuda", mean)
    truth = formula_down(*(t.double() for t in tensors))
    with CHOICE.using("fused"):
        y = layer_norm_linear(*tensors, EPS)
    with CHOICE.using("unfused"):
        plain = layer_norm_linear(*tensors, EPS)
    assert holds(y, plain, truth)


@pytest.mark.cuda
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize(("tokens", "channels", "width"), SIZES)
def test_cuda_linear_residual(tokens, channels, width, scaled):
    tensors = widening(tokens, width, channels, torch.bfloat16, "cuda")[: 5 if scaled else 4]
    truth = formula_up(*(t.double() for t in tensors))
    with CHOICE.using("fused"):
        y = linear_residual(*tensors)
    with CHOICE.using("unfused"):
        plain = linear_residual(*tensors)
    assert holds(y, plain, truth)


@pytest.mark.cuda
def test_cuda_gradients():
    for function, formula, tensors in (
        (
            lambda *t: layer_norm_linear(*t, EPS),
            formula_down,
            narrowing(500, 256, 48, torch.bfloat16, "cuda", 2.0),
        ),
        (linear_residual, formula_up, widening(500, 48, 256, torch.bfloat16, "cuda")),
    ):
        answers = []
        for mode in ("fused", "unfused", "exact"):
            leaves = [(t.double() if mode == "exact" else t).detach().requires_grad_() for t in tensors]
            with CHOICE.using("unfused" if mode == "exact" else mode):
                y = (formula if mode == "exact" else function)(*leaves)
            dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to("cuda", torch.bfloat16)
            answers.append(torch.autograd.grad(y, leaves, dy.to(y.dtype)))
        for ours, plain, truth in zip(*answers, strict=True):
            assert holds(ours, plain, truth)


def test_an_unknown_mode_names_the_valid_ones():
    with pytest.raises(ValueError, match=r"CGSPN_TOKEN_LINEAR=on is unknown; valid: auto, fused, unfused\."):
        with CHOICE.using("on"):
            pass


def test_forcing_what_cannot_run_says_why():
    tensors = narrowing(3, 64, 16, torch.float32, "cpu")
    with CHOICE.using("fused"), pytest.raises(RuntimeError, match="x is on cpu") as caught:
        layer_norm_linear(*tensors, EPS)
    assert "\n" not in str(caught.value)
    assert CHOICE.mode == "auto"


def test_the_choice_is_logged_once(caplog, monkeypatch):
    monkeypatch.setattr(CHOICE, "logged", set())
    tensors = narrowing(3, 64, 16, torch.float32, "cpu")
    with caplog.at_level("INFO", logger="cgspn"):
        for _ in range(2):
            layer_norm_linear(*tensors, EPS)
    assert caplog.messages == ["token-wise linear runs unfused: x is on cpu, not on cuda"]


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: [v.half() for v in t], "x is torch.float16, not bfloat16"),
        (lambda t: [t[0].T.contiguous().T, *t[1:]], "not contiguous"),
        (lambda t: [t[0][:, :32].contiguous(), t[1][:32], t[2][:32], t[3][:, :32], t[4]], "multiple of 64"),
        (lambda t: [*t[:3], t[3][:8], t[4][:8]], "one of"),
    ],
    ids=["dtype", "strides", "channels", "width"],
)
def test_cuda_conditions(change, reason):
    tensors = change(narrowing(70, 64, 16, torch.bfloat16, "cuda"))
    with CHOICE.using("fused"), pytest.raises(RuntimeError, match=reason):
        layer_norm_linear(*tensors, EPS)
