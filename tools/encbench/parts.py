"""The parts of the benchmark by name, and the grids that each measures where none are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from encbench.inference import block, encoder, latency, sublayer
from encbench.profiling import profile
from encbench.setting import Row, Setting
from encbench.training import train

PARTS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "sublayer": sublayer,
    "block": block,
    "encoder": encoder,
    "train": train,
    "latency": latency,
    "profile": profile,
}
GRIDS: dict[str, Sequence[int]] = {
    "sublayer": (27, 37, 74, 147),
    "block": (27, 37, 74, 147),
    "encoder": (27, 37, 54, 74, 147),
    "train": (27, 54, 74),
    "latency": (74, 147),
    "profile": (74,),
}
