"""Inputs of the operators in the layouts that users have, and their exact answers."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from cgspn.ops import line_scan, line_scan_ref
from cgspn.ops.directions import DIRECTIONS

NAMES = ("x", "a", "lam", "u")
LAYOUTS = ("contiguous", "channels_last", "generated", "sliced", "expanded", "padded")
LOGITS = ("equal", "one hot", "borders")
MEANS = (-80.0, -20.0, -8.0, -4.0, 0.0, 4.0, 8.0, 20.0, 80.0)


@dataclasses.dataclass(frozen=True)
class Case:
    """One call; ``name`` is its id in a test."""

    shape: tuple[int, int, int, int] = (2, 5, 6, 7)
    directions: tuple[str, ...] = DIRECTIONS
    affinity_channels: int | None = None
    chunk: int | None = None
    normalize: bool = True
    reduce: str = "sum"
    gates: tuple[bool, bool] = (True, True)
    layout: str = "contiguous"
    logits: float | str = 0.0  # their mean, or one of LOGITS

    @property
    def options(self):
        return {
            "directions": self.directions,
            "chunk": self.chunk,
            "normalize": self.normalize,
            "reduce": self.reduce,
        }

    def __str__(self):
        default = Case()
        parts = ["x".join(map(str, self.shape))]
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            if value != getattr(default, field.name):
                parts.append(
                    f"{field.name}={'-'.join(map(str, value)) if isinstance(value, tuple) else value}"
                )
        return ",".join(parts)


def draw(case: Case, dtype: torch.dtype, device: torch.device) -> list[Tensor | None]:
    """Random x, a, lam and u (None where the case has no gate), laid out as the case says."""
    batch, channels, height, width = case.shape
    num, ca = len(case.directions), case.affinity_channels or channels
    generator = torch.Generator().manual_seed(1)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    x = normal(batch, channels, height, width)
    a = set_logits(2 * normal(batch, num, 3, ca, height, width), case.logits)
    if not case.normalize:
        a = a.softmax(2)
    gates = [1 + 0.3 * normal(batch, num, channels, height, width) if g else None for g in case.gates]
    tensors = [t if t is None else t.to(dtype).to(device) for t in (x, a, *gates)]
    return [t if t is None else lay_out(t, case.layout) for t in tensors]


def set_logits(noise: Tensor, kind: float | str) -> Tensor:
    """Logits (B, D, 3, Ca, H, W) of a kind, from normal noise of the same shape."""
    if isinstance(kind, float):
        return noise + kind
    if kind == "equal":  # all three, beyond the clamp, at it and far above included
        return (20 * noise[:, :, :1]).expand_as(noise).clone()
    if kind == "one hot":
        hot = torch.nn.functional.one_hot(noise.argmax(2), 3).movedim(-1, 2)
        return torch.where(hot.bool(), 80.0, -80.0).to(noise)
    # At the borders of the picture everything is lost but the neighbours that are not there.
    a = noise.clone()
    for axis in (-1, -2):
        for edge, outside in ((0, 0), (-1, 2)):
            border = a.select(axis, edge)
            border.fill_(-80.0)
            border[:, :, outside] = 80.0
    return a


def lay_out(t: Tensor, layout: str) -> Tensor:
    """The same values (for ``expanded``: of the first picture) with other strides."""
    if layout == "contiguous":
        return t.contiguous()
    last = t.movedim((-2, -1), (1, 2))
    if layout == "channels_last":
        return last.contiguous().movedim((1, 2), (-2, -1))
    if layout == "generated":  # a view of a wider row per pixel, as one linear layer makes
        rows = last.flatten(3)
        wide = torch.nn.functional.pad(rows, (3, 2), value=torch.nan)
        return wide[..., 3:-2].unflatten(3, last.shape[3:]).movedim((1, 2), (-2, -1))
    if layout == "padded":  # rows begin at whole 16 bytes, whatever they hold
        rows = last.flatten(3)
        wide = torch.nn.functional.pad(rows, (0, -rows.shape[-1] % 8), value=torch.nan)
        return wide[..., : rows.shape[-1]].unflatten(3, last.shape[3:]).movedim((1, 2), (-2, -1))
    if layout == "sliced":
        wide = torch.full((*t.shape[:-1], 2 * t.shape[-1]), torch.nan, dtype=t.dtype, device=t.device)
        wide[..., ::2] = t
        return wide[..., ::2]
    return t[:1].expand_as(t) if t.shape[0] else t


def exact(tensors: list[Tensor | None], case: Case, dy: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """Output and gradients in float64 by the reference, on the CPU."""
    wide = [t if t is None else t.detach().cpu().double().requires_grad_() for t in tensors]
    y = line_scan_ref(*wide, **case.options)
    grads = iter(
        torch.autograd.grad(y, [t for t in wide if t is not None], dy.cpu().double(), allow_unused=True)
    )
    return y.detach(), [None if t is None else fill(next(grads), t) for t in wide]


def fill(grad: Tensor | None, t: Tensor) -> Tensor:
    """A gradient that autograd left out is zero."""
    return torch.zeros_like(t) if grad is None else grad


def ours(tensors: list[Tensor | None], case: Case, dy: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """Output and gradients by the operator."""
    leaves = [t if t is None else t.detach().requires_grad_() for t in tensors]
    y = line_scan(*leaves, **case.options)
    grads = iter(torch.autograd.grad(y, [t for t in leaves if t is not None], dy))
    return y.detach(), [None if t is None else next(grads) for t in leaves]


def output_shape(case: Case) -> tuple[int, ...]:
    """Shape of y."""
    batch, *rest = case.shape
    return (batch, *rest) if case.reduce == "sum" else (batch, len(case.directions), *rest)


SHAPES = [
    (1, 1, 1, 1),
    (1, 3, 1, 5),
    (2, 1, 7, 1),
    (2, 8, 2, 31),
    (1, 64, 5, 4),
    (1, 13, 63, 9),
    (3, 17, 9, 33),
]
CASES = [
    *(Case(shape) for shape in SHAPES),
    *(Case(shape, layout="channels_last") for shape in SHAPES),
    *(Case((2, 9, 8, 11), layout=layout) for layout in LAYOUTS),
    *(Case((2, 9, 8, 11), directions=(d,), layout="channels_last") for d in DIRECTIONS),
    *(
        Case((2, c, 8, 11), chunk=chunk, layout=lo)
        for c in (1, 9)
        for chunk in (1, 3, 8, 100)
        for lo in LAYOUTS[:2]
    ),
    *(
        Case((2, 9, 8, 11), directions=("rl", "tb"), reduce=r, chunk=4, layout="generated")
        for r in ("sum", "none")
    ),
    *(Case((2, 9, 8, 11), affinity_channels=1, layout=layout) for layout in LAYOUTS),
    *(  # one affinity for all channels, read by bulk copies where there are such
        Case(shape, directions=directions, affinity_channels=1, layout="padded", chunk=chunk, normalize=n)
        for shape, directions, chunk, n in (
            ((2, 8, 7, 11), DIRECTIONS, None, True),
            ((1, 64, 13, 6), DIRECTIONS, 4, True),
            ((2, 24, 9, 9), ("rl", "tb", "bt"), None, True),
            ((3, 16, 5, 37), ("lr",), 2, True),
            ((2, 32, 6, 70), ("bt", "tb"), None, False),
        )
    ),
    *(Case((2, c, 8, 11), normalize=False, layout=layout) for c in (1, 9) for layout in LAYOUTS[:3]),
    *(
        Case((2, 9, 8, 11), gates=g, layout="generated")
        for g in ((False, True), (True, False), (False, False))
    ),
    Case((2, 16, 8, 11), reduce="none", gates=(False, False), affinity_channels=1, normalize=False),
    Case((1, 4, 3, 1100), layout="channels_last"),
    *(Case((2, 200, h, w), affinity_channels=ca) for h, w, ca in ((6, 8, None), (3, 5, 1))),
    Case((2, 201, 4, 7), directions=("rl", "tb", "lr"), gates=(False, False), chunk=3),
    *(Case((2, 1, 19, 23), layout=layout) for layout in LAYOUTS[1:4]),
]
