"""What torch needs of the operators: opcheck, gradcheck, compile, export, autocast, transforms."""

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cgspn.ops import library, line_scan, row_stochastic
from cgspn.ops.directions import direction_codes

from .cases import LAYOUTS, Case, draw

pytestmark = pytest.mark.skipif(
    not library.active(torch.device("cpu")), reason="the native library is not active"
)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("affinity_channels", [1, 3])
def test_gradcheck(normalize, affinity_channels, device):
    case = Case((1, 3, 3, 4), affinity_channels=affinity_channels, normalize=normalize, chunk=2)
    tensors = [t.requires_grad_() for t in draw(case, torch.float64, device)]
    assert torch.autograd.gradcheck(lambda *t: line_scan(*t, **case.options), tensors)


def test_gradcheck_row_stochastic(device):
    a = draw(Case((1, 2, 3, 4)), torch.float64, device)[1].requires_grad_()
    assert torch.autograd.gradcheck(row_stochastic, (a,))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout, device):
    case = Case((2, 3, 4, 5), layout=layout)
    x, a, lam, u = (t.detach().requires_grad_() for t in draw(case, torch.float32, device))
    codes = direction_codes(case.directions)
    torch.library.opcheck(torch.ops.cgspn.line_scan, (x, a, lam, u, codes, None, True, True, True))
    torch.library.opcheck(torch.ops.cgspn.line_scan, (x, a, None, None, codes, 2, False, False, False))
    torch.library.opcheck(torch.ops.cgspn.row_stochastic, (a, codes))
    plain = [t.detach() for t in (x, a, lam, u)]
    _, state = torch.ops.cgspn.line_scan(*plain, codes, None, True, True, True)
    for kept, mask in ((state, [True] * 4), (None, [True, False, True, False])):
        arguments = (torch.ones_like(plain[0]), *plain, kept, codes, None, True, True, mask)
        torch.library.opcheck(torch.ops.cgspn.line_scan_backward, arguments)
    torch.library.opcheck(torch.ops.cgspn.row_stochastic_backward, (plain[1], plain[1], codes))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["channels_last", "generated"])
def test_compiled_equals_eager_without_recompiling(layout, device):
    torch._dynamo.reset()
    compiled = torch.compile(line_scan, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((2, 6, 5, 7), (3, 6, 8, 9), (4, 6, 11, 6)):
            case = Case(shape, layout=layout)
            answers = []
            for function in (line_scan, compiled):
                tensors = [t.detach().requires_grad_() for t in draw(case, torch.float32, device)]
                y = function(*tensors)
                answers.append([y, *torch.autograd.grad(y.square().sum(), tensors)])
            for got, want in zip(answers[1], answers[0], strict=True):
                torch.testing.assert_close(got, want)
                assert got.stride() == want.stride()


class Scan(torch.nn.Module):
    def forward(self, x, a, lam, u):
        return line_scan(x, a, lam, u) * 2


@pytest.mark.slow
def test_export_runs_in_a_fresh_process(tmp_path):
    B, H, W = torch.export.Dim("B"), torch.export.Dim("H"), torch.export.Dim("W")
    tensors = draw(Case((2, 4, 5, 6)), torch.float32, torch.device("cpu"))
    shapes = ({0: B, 2: H, 3: W}, {0: B, 4: H, 5: W}, {0: B, 3: H, 4: W}, {0: B, 3: H, 4: W})
    program = torch.export.export(Scan(), tuple(tensors), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "scan.pt2")
    other = draw(Case((3, 4, 7, 9)), torch.float32, torch.device("cpu"))
    torch.save([other, Scan()(*other)], tmp_path / "io.pt")
    code = (
        "import torch, cgspn.ops\n"
        f"inputs, want = torch.load(r'{tmp_path}/io.pt')\n"
        f"got = torch.export.load(r'{tmp_path}/scan.pt2').module()(*inputs)\n"
        "torch.testing.assert_close(got, want)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype, device):
    tensors = draw(Case(), torch.float32, device)
    with torch.autocast(device.type, dtype):
        assert line_scan(*tensors).dtype == dtype
        assert row_stochastic(tensors[1]).dtype == dtype
        assert line_scan(*(t.double() for t in tensors)).dtype == torch.float64
    assert line_scan(*tensors).dtype == torch.float32


def test_vmap(device):
    tensors = [torch.stack([t, 2 * t]) for t in draw(Case(), torch.float64, device)]
    got = torch.vmap(line_scan)(*tensors)
    torch.testing.assert_close(got, torch.stack([line_scan(*(t[i] for t in tensors)) for i in range(2)]))


def test_double_backward_raises(device):
    tensors = [t.requires_grad_() for t in draw(Case(), torch.float64, device)]
    (dx, *_) = torch.autograd.grad(line_scan(*tensors).square().sum(), tensors, create_graph=True)
    with pytest.raises(RuntimeError, match="line_scan_backward"):
        dx.sum().backward()


def test_jvp_and_functional_grad_raise(device):
    tensors = draw(Case(), torch.float64, device)
    with pytest.raises(RuntimeError, match="line_scan"):
        torch.func.jvp(line_scan, tuple(tensors), tuple(tensors))
    with pytest.raises(RuntimeError, match="line_scan"):
        torch.func.grad(lambda x: line_scan(x, *tensors[1:]).sum())(tensors[0])


def test_flops_are_counted(device):
    tensors = draw(Case((2, 6, 5, 7)), torch.float32, device)
    with FlopCounterMode(display=False) as counter:
        line_scan(*tensors)
    assert counter.get_total_flops() == 2 * 5 * 7 * 4 * (10 * 6 + 12 * 6)


def test_no_state_and_no_gradient_that_nobody_needs(device):
    case = Case()
    x, a, lam, u = draw(case, torch.float32, device)
    codes = direction_codes(case.directions)
    y, state = torch.ops.cgspn.line_scan(x, a, lam, u, codes, None, True, True, False)
    assert state.numel() == 0
    mask = [False, True, False, False]
    grads = torch.ops.cgspn.line_scan_backward(y, x, a, lam, u, None, codes, None, True, True, mask)
    assert [g.numel() > 0 for g in grads] == mask


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_copied(layout, device):
    tensors = draw(Case((1, 16, 48, 48), layout=layout), torch.float32, device)
    x_bytes = tensors[0].numel() * 4
    # y, and no more scratch than partial sums of y; a copy of the logits alone would be 12 times x.
    with torch.no_grad():
        assert allocated(lambda: line_scan(*tensors), device) <= 6 * x_bytes


def allocated(call, device):
    """Bytes that ``call`` allocates: all of them on the CPU, the peak on CUDA."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as profile:
        call()
    return sum(max(event.self_cpu_memory_usage, 0) for event in profile.key_averages())
