"""The error rule: how far an output or a gradient may be from float64.

The comparator is the reference on the same inputs with its state in float32, rounding only what the operator
stores. Ours is at most 2 times its maximum and 1.5 times its RMS error against float64, plus one unit in the
last place of the largest magnitude, plus float64's own resolution (its gradient of a sigmoid at 80 is 0, ours
1e-33). In float64 there is nothing to compare with: a relative bound takes its place.
"""

import torch

from cgspn.ops import reference

from .cases import NAMES, exact, fill, ours, output_shape

FLOAT64_ERROR = 1e-11


def check_rule(case, tensors, dtype, device):
    """Runs the operator forward and backward and holds y and every gradient to the rule; returns them."""
    dy = output_gradient(case, dtype, device)
    y, grads = ours(tensors, case, dy)
    true_y, true_grads = exact(tensors, case, dy)
    hold_to_rule((y, *grads), (true_y, *true_grads), comparator(tensors, case, dy))
    return y, *grads


def output_gradient(case, dtype, device):
    return torch.randn(output_shape(case), generator=torch.Generator().manual_seed(2)).to(dtype).to(device)


def hold_to_rule(answers, truth, theirs):
    """Compares outputs and gradients in the order y, x, a, lam, u; None is an absent gate."""
    for name, got, true, other in zip(("y", *NAMES), answers, truth, theirs, strict=True):
        if got is None:
            continue
        assert got.shape == true.shape, name
        if not got.numel():
            continue
        got, other = got.cpu(), other.cpu()
        assert torch.isfinite(got).all(), f"{name} has NaN or inf"
        largest = true.abs().max().item()
        if got.dtype == torch.float64:
            assert (got - true).abs().max() <= FLOAT64_ERROR * max(1.0, largest), name
            continue
        unit = torch.finfo(got.dtype).eps * 2.0 ** torch.floor(torch.log2(torch.tensor(largest))).item()
        unit += torch.finfo(torch.float64).eps
        error, allowed = (got.double() - true).abs(), (other.double() - true).abs()
        assert error.max() <= 2 * allowed.max() + unit, f"{name}: maximum"
        assert rms(error) <= 1.5 * rms(allowed) + unit, f"{name}: RMS"


def rms(t):
    return t.square().mean().sqrt()


class StoredProduct(torch.autograd.Function):
    """w * h, with h kept for the backward pass in the dtype that the operator stores it in."""

    @staticmethod
    def forward(ctx, w, h, dtype):
        ctx.save_for_backward(w, h.to(dtype).to(h.dtype))
        return w * h

    @staticmethod
    def backward(ctx, grad):
        w, h = ctx.saved_tensors
        return grad * h, grad * w, None


def comparator(tensors, case, dy):
    """y and the gradients of x, a, lam, u by the reference, rounded where the operator rounds."""
    wide = torch.promote_types(dy.dtype, torch.float32)
    leaves = [None if t is None else t.detach().cpu().to(wide).requires_grad_() for t in tensors]
    y = stored_scan(*leaves, case, dy.dtype)
    grads = iter(
        torch.autograd.grad(y, [t for t in leaves if t is not None], dy.cpu().to(wide), allow_unused=True)
    )
    grads = [None if t is None else fill(next(grads), t) for t in leaves]
    return [None if t is None else t.detach().to(dy.dtype) for t in (y, *grads)]


def stored_scan(x, a, lam, u, case, dtype):
    """The reference in its inputs' dtype, with states that its backward pass finds rounded to ``dtype``."""
    outputs = []
    for d, direction in enumerate(case.directions):
        lines, logits = (reference._to_lines(t, direction) for t in (x, a[:, d]))
        gate = torch.ones_like(lines) if lam is None else reference._to_lines(lam[:, d], direction)
        h = [gate[0] * lines[0]]
        for i in range(1, lines.shape[0]):
            entering = gate[i] * lines[i]
            if case.chunk is not None and i % case.chunk == 0:
                h.append(entering)
                continue
            w = (reference._normalize if case.normalize else reference._mask_outside)(logits[i]).unbind(-3)
            moved = [reference._shift(h[-1], -1), h[-1], reference._shift(h[-1], 1)]
            mixed = [
                StoredProduct.apply(wk.expand_as(hk), hk, dtype) for wk, hk in zip(w, moved, strict=True)
            ]
            h.append(sum(mixed) + entering)
        states = reference._from_lines(torch.stack(h), direction)
        outputs.append(states if u is None else StoredProduct.apply(u[:, d], states, dtype))
    return sum(outputs) if case.reduce == "sum" else torch.stack(outputs, 1)
