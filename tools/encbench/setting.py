"""What is measured, for all parts, and the attention backend that is fastest for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cgspn.backbones import VisionEncoder
from cgspn.registry import BACKBONES
from encbench import timing

Row = dict[str, Any]
HYBRID = (8, 17, 26)
BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


@dataclass(frozen=True)
class Setting:
    """What is measured, for all parts.

    Attributes:
        size: The preset's size, as in ``vit_<size>``.
        grids: Sides of the token grid.
        batch: Pictures at once where a part does not choose itself.
        device: ``cuda`` or ``cpu``.
        budget_s: Seconds that one figure may take.
        models: Which of ``vit``, ``cgspn``, ``hybrid``.
        compile: Whether compiled blocks are timed too.
    """

    size: str
    grids: tuple[int, ...]
    batch: int
    device: str
    budget_s: float
    models: tuple[str, ...]
    compile: bool

    def build(self, name: str, depth: int | None = None) -> VisionEncoder:
        """A randomly initialised encoder whose propagation branches are not at their start of zero."""
        node: dict[str, Any] = {"type": f"{'vit' if name == 'vit' else 'cgspn'}_{self.size}"}
        if name == "hybrid":
            node["attention_at"] = HYBRID
        if depth is not None:
            node["depth"] = depth
        torch.manual_seed(0)
        with torch.device(self.device):
            encoder = BACKBONES.build(node)
        for block in encoder.blocks:
            if hasattr(block.operator, "up"):
                nn.init.normal_(block.operator.up.weight, std=0.02)
        return cast(VisionEncoder, encoder)

    def tokens(self, encoder: VisionEncoder, grid: int, batch: int | None = None) -> Tensor:
        """Random input of a block, bfloat16."""
        shape = (batch or self.batch, grid, grid, encoder.embed_dim)
        return torch.randn(shape, device=self.device, dtype=torch.bfloat16)

    def images(self, encoder: VisionEncoder, grid: int, batch: int, dtype: torch.dtype) -> Tensor:
        """Random pictures."""
        side = grid * encoder.patch_size
        return torch.randn(batch, 3, side, side, device=self.device, dtype=dtype)


@contextlib.contextmanager
def fastest_attention(setting: Setting, encoder: VisionEncoder, grid: int, batch: int) -> Iterator[str]:
    """Runs the body with the SDPA backend that is fastest at this size, and says which."""
    if setting.device != "cuda":
        yield "cpu"
        return
    heads = cast(Any, encoder.blocks[0]).operator.num_heads
    shape = (batch, heads, grid * grid, encoder.embed_dim // heads)
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    times = {}
    for name, backend in BACKENDS.items():
        with sdpa_kernel(backend), contextlib.suppress(RuntimeError):
            times[name] = timing.measure(partial(F.scaled_dot_product_attention, q, k, v), 0.1)["ms"]
    del q, k, v
    fastest = min(times, key=lambda name: times[name])
    with sdpa_kernel(BACKENDS[fastest]):
        yield fastest


def attention_context(setting: Setting, name: str, grid: int, batch: int) -> Any:
    """``fastest_attention`` where the model has attention."""
    if name == "cgspn":
        return contextlib.nullcontext("none")
    return fastest_attention(setting, setting.build("vit", depth=1), grid, batch)
