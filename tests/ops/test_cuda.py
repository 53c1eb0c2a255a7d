"""What only a CUDA device has: streams, several devices, graphs, memory for 2^31 elements."""

import dataclasses

import pytest
import torch

from cgspn.ops import library, line_scan, row_stochastic
from cgspn.ops.directions import DIRECTIONS

from .cases import LAYOUTS, Case, draw, exact
from .rule import comparator, hold_to_rule

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not library.STATUS["cuda"].active, reason="no native CUDA kernels"),
]

CASES = [  # one for each family of kernels
    Case((2, 64, 40, 23), layout="channels_last"),
    Case((2, 5, 17, 23)),
    Case((2, 210, 9, 12)),
    Case((2, 5, 17, 23), layout="sliced"),
    Case((2, 32, 17, 23), affinity_channels=1, layout="channels_last"),
    Case((2, 32, 17, 23), affinity_channels=1, layout="padded"),
    Case((4, 1, 17, 23), directions=("lr", "tb"), layout="channels_last"),
]


def answers(tensors, case):
    """y, the gradients and the weights, all on the current stream."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = line_scan(*leaves, **case.options)
    weights = row_stochastic(tensors[1], directions=case.directions)
    return [y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y)), weights]


def same(got, want):
    return all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_side_stream(case):
    device = torch.device("cuda")
    right = draw(case, torch.bfloat16, device)
    want = answers(right, case)
    inputs = draw(case, torch.bfloat16, device)
    for t in inputs:
        t.fill_(torch.nan)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Work on another stream would run before the inputs are there.
        torch.cuda._sleep(20_000_000)
        for to, source in zip(inputs, right, strict=True):
            to.copy_(source)
        got = answers(inputs, case)
    torch.cuda.current_stream().wait_stream(stream)
    assert same(got, want)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cuda_graph_replays_with_new_inputs(case):
    device = torch.device("cuda")
    inputs = draw(case, torch.bfloat16, device)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        answers(inputs, case)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = answers(inputs, case)
    for t in inputs:
        t.mul_(0.5)
    want = answers(inputs, case)
    for _ in range(2):
        for t in got:
            t.fill_(torch.nan)
        graph.replay()
        assert same(got, want)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_tensors_device_is_used(case):
    tensors = draw(case, torch.float32, torch.device("cuda", 1))
    got = answers(tensors, case)
    assert torch.cuda.current_device() == 0
    assert all(t.device.index == 1 for t in got)
    assert same(got, [t.to(1) for t in answers([t.to(0) for t in tensors], case)])


def test_calls_do_not_wait_for_the_device():
    case = CASES[0]
    tensors = draw(case, torch.bfloat16, torch.device("cuda"))
    answers(tensors, case)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(2_000_000_000)
        answers(tensors, case)
        assert not torch.cuda.current_stream().query(), "a call waited for the device"
        torch.cuda.current_stream().synchronize()


def draw_on_device(case, dtype):
    """Inputs too large for ``draw``, which goes through float64 on the CPU."""
    batch, channels, height, width = case.shape
    num = len(case.directions)
    tensors = []
    for axes in ((channels,), (num, 3, channels), (num, channels), (num, channels)):
        if case.layout == "contiguous":
            t = torch.empty(batch, *axes, height, width, dtype=dtype, device="cuda")
        else:
            t = torch.empty(batch, height, width, *axes, dtype=dtype, device="cuda").movedim((1, 2), (-2, -1))
        tensors.append(t.normal_())
    return tensors


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize(
    ("shape", "directions"),
    [
        ((32, 64, 74, 74), DIRECTIONS),
        ((32, 64, 147, 147), DIRECTIONS),
        ((32, 64, 74, 90), DIRECTIONS),  # a cluster holds fewer positions of one axis than of the other
        ((8, 64, 256, 256), DIRECTIONS),
        ((1, 128, 512, 512), DIRECTIONS),
        ((1, 1152, 64, 64), DIRECTIONS),
        ((16, 8, 1024, 1024), DIRECTIONS),
        ((256, 1, 1024, 1024), DIRECTIONS),
        ((600, 64, 74, 74), DIRECTIONS),  # more than 2^31 logits
        ((6130, 64, 74, 74), ("bt",)),  # more than 2^31 elements in every tensor
        ((6130, 64, 74, 74), ("rl",)),
    ],
    ids=str,
)
def test_large(shape, directions, layout):
    """Pictures and channels are independent, so a first and a last few stand for all."""
    dtype = torch.bfloat16
    case = Case(shape, directions=directions, layout=layout)
    torch.cuda.empty_cache()
    tensors_alive = 2 * (1 + 5 * len(directions)) + 1 + 6 * len(directions)
    gib = tensors_alive * torch.Size(shape).numel() * dtype.itemsize / 2**30
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gib:
        pytest.skip(f"needs {gib:.0f} GiB of device memory, {free:.0f} are free")
    leaves = [t.requires_grad_() for t in draw_on_device(case, dtype)]
    y = line_scan(*leaves, **case.options)
    dy = torch.randn(1, 1, *shape[2:], dtype=dtype, device="cuda").expand(shape)
    grads = torch.autograd.grad(y, leaves, dy)
    for picture, channel in ((slice(0, 1), slice(0, 2)), (slice(-1, None), slice(-2, None))):

        def cut(t, picture=picture, channel=channel):
            return t.detach()[picture][..., channel, :, :]

        part = [cut(t) for t in leaves]
        part_case = dataclasses.replace(case, shape=tuple(part[0].shape))
        true, true_grads = exact(part, part_case, cut(dy))
        got = [cut(t) for t in (y, *grads)]
        hold_to_rule(got, (true, *true_grads), comparator(part, part_case, cut(dy)))
