"""What is timed: shapes, dtypes, layouts and passes, one row each; and the floors of a row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

Shape = tuple[int, int, int, int]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
# view: slices of one linear layer's rows, as the encoders make them; dense: channels-last; nchw: contiguous.
LAYOUTS = ("view", "dense", "nchw")
# forward keeps no state; training keeps it for the backward pass.
PASSES = ("forward", "training", "backward")
ALL = (0, 1, 2, 3)


@dataclass(frozen=True)
class Case:
    """One operator call to time; directions are codes in the order tb, bt, lr, rl."""

    shape: Shape
    dtype: str = "bf16"
    layout: str = "view"
    passes: tuple[str, ...] = PASSES
    shared: bool = False
    directions: tuple[int, ...] = ALL
    chunk: int | None = None
    rivals: bool = False  # also attention at equal tokens and what a GSPN user runs

    @property
    def affinity_channels(self) -> int:
        """Channels of the logits."""
        return 1 if self.shared else self.shape[1]

    @property
    def image_bytes(self) -> int:
        """Bytes of one tensor of x's size."""
        return torch.Size(self.shape).numel() * DTYPES[self.dtype].itemsize

    @property
    def variant(self) -> str:
        """What is unlike the default call, in words."""
        names = ("tb", "bt", "lr", "rl")
        words = [] if self.directions == ALL else ["+".join(names[d] for d in self.directions)]
        words += ["shared affinity"] if self.shared else []
        words += [] if self.chunk is None else [f"chunk {self.chunk}"]
        return ", ".join(words)

    def tensors(self, phase: str) -> float:
        """The ideal floor: tensors of x's size that a call must read or write once."""
        directions = len(self.directions)
        logits = 3 * directions * self.affinity_channels / self.shape[1]
        inputs = 1 + logits + 2 * directions
        if phase == "backward":  # dy and the state come in, a gradient for every input goes out
            return 2 * inputs + 1 + directions
        return inputs + 1 + (directions if phase == "training" else 0)

    def schedule_tensors(self, phase: str) -> float:
        """The schedule floor: what the CUDA kernels move, with re-reads and partial sums that leave the chip.

        Opposite directions run at once and add up in place: each direction reads x (and dy) and writes its
        part of y (and dx), and all but the first on a line read that again.
        """
        again = len(self.directions) - 1
        return self.tensors(phase) + (4 if phase == "backward" else 3) * again

    def bytes(self, phase: str) -> float:
        """Bytes of the ideal floor."""
        return self.tensors(phase) * self.image_bytes


def _cuda() -> Iterator[Case]:
    grids = [Case((32, 64, n, n), rivals=True) for n in (27, 37, 74, 147)]
    large = [(16, 8, 1024, 1024), (256, 1, 1024, 1024), (8, 64, 256, 256), (1, 128, 512, 512)]
    yield from grids[::-1]
    # In the rows of a linear layer one channel is single values far apart; planes are what has one channel.
    yield from (Case(shape, layout="nchw" if shape[1] == 1 else "view") for shape in large)
    scarce = [(8, 64, 74, 74), (1, 64, 74, 74), (1, 64, 147, 147), (1, 32, 64, 64), (1, 1152, 64, 64)]
    yield from (Case(shape) for shape in scarce)
    yield from (Case(shape, "fp32") for shape in (grids[3].shape, grids[2].shape, large[0], large[2]))
    middle = Case(grids[2].shape, passes=("forward", "backward"))
    yield from (replace(middle, layout=layout) for layout in ("dense", "nchw"))
    yield replace(middle, shared=True)
    yield from (replace(middle, directions=d) for d in ((0,), (3,), (2, 3), (0, 1)))
    yield replace(middle, chunk=16)


def _cpu() -> Iterator[Case]:
    for dtype in ("fp32", "bf16"):
        for layout in ("view", "nchw"):
            for shape in ((1, 64, 74, 74), (4, 8, 256, 256), (1, 1, 1024, 1024), (2, 20, 37, 53)):
                yield Case(shape, dtype, layout, passes=("forward", "backward"))


TABLE = {"cuda": list(_cuda()), "cpu": list(_cpu())}
