"""What is timed against what: each contestant is declared once and builds its calls for a case.

The published GSPN kernel is not part of this repository, nor is it run: its times are those that DESIGN.md
section 7 records for one direction on an H100, and everything that its user runs around it is timed here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cgspn.ops import line_scan_ref
from opbench.table import DTYPES, Case, Shape

Call = Callable[[], object]
Inputs = list[Tensor]

REFERENCE_LIMIT = 5_000_000  # elements of x, and lines of a scan: the reference takes one step a line
REFERENCE_LINES = 256
ATTENTION_WIDTH, ATTENTION_HEADS, ATTENTION_TOKENS = 1152, 16, 22_000
# One direction of the published GSPN kernel on an H100, weights already normalised: forward, backward ms.
GSPN_SCAN_MS: dict[tuple[Shape, str], tuple[float, float]] = {
    ((32, 64, 74, 74), "bf16"): (2.54, 5.59),
    ((32, 64, 147, 147), "bf16"): (13.2, 29.6),
}


def make_inputs(case: Case, device: str) -> Inputs:
    """x, a, lam, u in the case's layout."""
    b, c, h, w = case.shape
    ca, d = case.affinity_channels, len(case.directions)
    options = {"device": device, "dtype": DTYPES[case.dtype]}
    if case.layout == "nchw":
        shapes = ((b, c, h, w), (b, d, 3, ca, h, w), (b, d, c, h, w), (b, d, c, h, w))
        return [torch.randn(shape, **options) for shape in shapes]
    widths = [d * 3 * ca, d * c, d * c]
    if case.layout == "view":
        padding = -widths[0] % 8 if case.shared else 0  # as the operators lay them out on CUDA
        widths.insert(1, padding)
        a, _, lam, u = torch.randn(b, h, w, sum(widths), **options).split(widths, -1)
    else:
        a, lam, u = (torch.randn(b, h, w, n, **options) for n in widths)
    x = torch.randn(b, h, w, c, **options).permute(0, 3, 1, 2)
    a = a.unflatten(-1, (d, 3, ca)).permute(0, 3, 4, 5, 1, 2)
    return [x, a, *(t.unflatten(-1, (d, c)).permute(0, 3, 4, 1, 2) for t in (lam, u))]


def copy(case: Case, phase: str, inputs: Inputs) -> Call:
    """A copy that reads and writes as many bytes as the ideal floor counts."""
    source = torch.empty(int(case.bytes(phase)) // 8, device=inputs[0].device).normal_()
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def cgspn(case: Case, phase: str, inputs: Inputs) -> Call:
    """The operator, or its backward operator."""
    codes, ops = list(case.directions), torch.ops.cgspn
    if phase != "backward":
        return lambda: ops.line_scan(*inputs, codes, case.chunk, True, True, phase == "training")
    _, state = ops.line_scan(*inputs, codes, case.chunk, True, True, True)
    dy = torch.randn_like(inputs[0])
    return lambda: ops.line_scan_backward(
        dy, *inputs, state, codes, case.chunk, True, True, [True, True, True, True]
    )


def reference(case: Case, phase: str, inputs: Inputs) -> Call | None:
    """The same in plain PyTorch, eagerly."""
    b, c, h, w = case.shape
    if b * c * h * w > REFERENCE_LIMIT or max(h, w) > REFERENCE_LINES or case.variant:
        return None
    if phase == "forward":
        return lambda: line_scan_ref(*inputs)
    if phase == "training":
        return None
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = line_scan_ref(*leaves)
    dy = torch.randn_like(y)
    return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)


def attention(backend: SDPBackend) -> Callable[[Case, str, Inputs], Call | None]:
    """Scaled dot-product attention over as many tokens, at the width of the encoders of 400M parameters."""

    def build(case: Case, phase: str, inputs: Inputs) -> Call | None:
        batch, _, height, width = case.shape
        if not case.rivals or height * width > ATTENTION_TOKENS or phase == "training":
            return None
        shape = (batch, ATTENTION_HEADS, height * width, ATTENTION_WIDTH // ATTENTION_HEADS)
        options = {"device": inputs[0].device, "dtype": inputs[0].dtype}
        q, k, v = (torch.randn(shape, **options).requires_grad_(phase == "backward") for _ in "qkv")

        def forward() -> Tensor:
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(q, k, v)

        if phase == "forward":
            return forward
        out = forward()
        dout = torch.randn_like(out)
        return lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)

    return build


class PublishedScan(torch.autograd.Function):
    """Stands where the published kernel runs: gives its output and gradients room, takes no time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lam: Tensor, *weights: Tensor) -> Tensor:
        """Room for h."""
        ctx.inputs = (x, lam, *weights)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor, ...]:
        """Room for the gradients of x, lam and the weights."""
        return tuple(torch.empty_like(t) for t in ctx.inputs)


def around_gspn(x: Tensor, a: Tensor, lam: Tensor, u: Tensor) -> Tensor:
    """What a GSPN user runs around four calls of the kernel, which scans from left to right only."""
    s = a.sigmoid()
    weights = s / s.sum(2, keepdim=True).clamp_min(1e-7)
    y: Tensor | None = None
    for d, (turn, flip) in enumerate(((True, False), (True, True), (False, False), (False, True))):

        def place(t: Tensor, turn: bool = turn, flip: bool = flip) -> Tensor:
            t = t.transpose(-1, -2) if turn else t
            return (t.flip(-1) if flip else t).contiguous()

        h = PublishedScan.apply(place(x), place(lam[:, d]), *(place(weights[:, d, k]) for k in range(3)))
        h = h.flip(-1) if flip else h
        h = h.transpose(-1, -2) if turn else h
        part = u[:, d] * h
        y = part if y is None else y + part
    assert y is not None
    return y


def gspn(case: Case, phase: str, inputs: Inputs) -> Call | None:
    """The path around the published kernel, on contiguous NCHW tensors as it wants them."""
    if not case.rivals or (case.shape, case.dtype) not in GSPN_SCAN_MS or phase == "training":
        return None
    leaves = [t.detach().contiguous().requires_grad_(phase == "backward") for t in inputs]
    if phase == "forward":
        return lambda: around_gspn(*leaves)
    y = around_gspn(*leaves)
    dy = torch.randn_like(y)
    return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)


def gspn_scan_ms(case: Case, phase: str) -> float:
    """Recorded milliseconds of the published kernel for every direction of the case."""
    forward, backward = GSPN_SCAN_MS[case.shape, case.dtype]
    return len(case.directions) * (backward if phase == "backward" else forward)


@dataclass(frozen=True)
class Contestant:
    """A name, where it runs, and how its call is made (None: it does not take part)."""

    name: str
    build: Callable[[Case, str, Inputs], Call | None]
    devices: tuple[str, ...] = ("cpu", "cuda")
    slow: bool = False  # left out on request


CONTESTANTS = (
    Contestant("copy", copy),
    Contestant("cgspn", cgspn),
    Contestant("reference", reference, slow=True),
    Contestant("SDPA cuDNN", attention(SDPBackend.CUDNN_ATTENTION), ("cuda",)),
    Contestant("SDPA Flash", attention(SDPBackend.FLASH_ATTENTION), ("cuda",)),
    Contestant("GSPN", gspn, ("cuda",)),
)
