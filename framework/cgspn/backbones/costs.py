"""What an encoder costs, part by part, without running it: on tensors that have shapes and no values."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from cgspn.operators.propagation import Propagation
from cgspn.ops import library
from cgspn.ops.latent_propagation import latent_backend
from cgspn.registry import OPERATORS

# Regular expressions of module names, and what the parts below them are called.
PARTS = {
    r"patch_embed|pos_embed|prefix|norm_pre": "embedding",
    r"blocks\.\d+\.operator": "operator",
    r"blocks\.\d+\.mlp": "MLPs",
    r"head|head_proj|classifier": "head",
}
REST = "norms and the rest"


@dataclasses.dataclass(frozen=True)
class Cost:
    """Parameters, multiply-accumulates, and bytes that are kept for the backward pass."""

    parameters: int
    macs: int
    activation_bytes: int


@dataclasses.dataclass(frozen=True)
class EncoderCosts:
    """Costs by part: embedding, operators by kind, MLPs, head and the rest; they add up to ``total``.

    ``scan_macs`` are the multiply-accumulates of the line scans, which the operators' figures contain.
    """

    parts: dict[str, Cost]
    scan_macs: int

    @property
    def total(self) -> Cost:
        """Cost of the whole encoder."""
        columns = zip(*map(dataclasses.astuple, self.parts.values()), strict=True)
        return Cost(*map(sum, columns))


def encoder_costs(encoder: nn.Module, image_size: tuple[int, int], batch_size: int = 1) -> EncoderCosts:
    """Counts parameters, multiply-accumulates and activation memory of ``forward``.

    Multiply-accumulates are those of matrix products, attention's included, and of line scans, half the
    operations in their FLOP formulas; element-wise work is left out, as is usual. Activation memory is
    what autograd keeps for the backward pass when all parameters train in their own dtype; a storage
    counts once, where it is first kept, and parameters do not count.

    Args:
        encoder: Any backbone, on any device, ``meta`` included.
        image_size: Height and width in pixels.
        batch_size: Images.
    """
    channels = len(cast(Sequence[float], encoder.mean))
    parts = part_names(encoder)
    order = dict.fromkeys([*parts.values(), REST])
    where = [REST]
    parameters: Counter[str] = Counter()
    for name, parameter in encoder.named_parameters():
        part = next((p for root, p in parts.items() if name.startswith(root + ".")), REST)
        parameters[part] += parameter.numel()
    with contextlib.ExitStack() as stack:
        for root, part in parts.items():
            module = encoder.get_submodule(root)
            stack.callback(module.register_forward_pre_hook(partial(enter, where, part)).remove)
            stack.callback(module.register_forward_hook(partial(leave, where)).remove)
        counted = MacCounter(where)
        if not library.STATUS["cpu"].active:
            # The reference is element-wise work, which has no formula.
            for module in encoder.modules():
                if isinstance(module, Propagation):
                    stack.callback(module.register_forward_hook(counted.add_scan).remove)
        # So that linear layers and scans are counted apart.
        stack.enter_context(latent_backend("unfused"))
        stack.enter_context(FakeTensorMode())
        tensors = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype).requires_grad_(tensor.is_floating_point())
            for name, tensor in [*encoder.named_parameters(), *encoder.named_buffers()]
        }
        kept = KeptBytes(where, tensors.values())
        dtype = next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32)
        images = torch.empty(batch_size, channels, *image_size, dtype=dtype)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(kept.add, lambda tensor: tensor))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(counted)
        torch.func.functional_call(encoder, tensors, (images,))
    costs = {part: Cost(parameters[part], counted.macs[part], kept.bytes[part]) for part in order}
    return EncoderCosts(costs, counted.scan_macs)


def part_names(encoder: nn.Module) -> dict[str, str]:
    """The part that each module in ``PARTS`` belongs to, by the module's name; one per kind of operator."""
    parts = {}
    for name, module in encoder.named_modules():
        part = next((part for pattern, part in PARTS.items() if re.fullmatch(pattern, name)), None)
        if part is not None:
            parts[name] = f"operator {operator_name(module)}" if part == "operator" else part
    return parts


def operator_name(operator: nn.Module) -> str:
    """The name under which an operator's class is registered, or the class's own."""
    names = [name for name in OPERATORS.names() if OPERATORS.find(name) is type(operator)]
    return names[0] if names else type(operator).__name__


def enter(where: list[str], part: str, *_: Any) -> None:
    """A forward pre-hook: what follows belongs to ``part``."""
    where.append(part)


def leave(where: list[str], *_: Any) -> None:
    """The forward hook that ends ``enter``."""
    where.pop()


class MacCounter(TorchDispatchMode):
    """Adds up multiply-accumulates under the part that runs, ``where[-1]``."""

    def __init__(self, where: list[str]) -> None:
        super().__init__()
        self.where = where
        self.macs: Counter[str] = Counter()
        self.scan_macs = 0
        attention = torch.ops.aten._scaled_dot_product_flash_attention
        # torch has no formula for attention's CPU kernel.
        self.formulas = {
            **flop_registry,
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[attention],
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        formula = self.formulas.get(func._overloadpacket)
        if formula is not None:
            macs = formula(*args, **kwargs, out_val=output) // 2
            self.macs[self.where[-1]] += macs
            if func.namespace == "cgspn":
                self.scan_macs += macs
        return output

    def add_scan(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """Counts a scan in a forward hook: per pixel and direction 5 for a channel and 6 for an affinity."""
        assert isinstance(module, Propagation)
        batch, height, width, channels = args[0].shape
        lines = batch * height * width * len(module.directions)
        macs = lines * (5 * channels + 6 * module.affinity_dim)
        self.macs[self.where[-1]] += macs
        self.scan_macs += macs


class KeptBytes:
    """Adds up what autograd keeps, under the part that runs, ``where[-1]``; ``free`` tensors do not count."""

    def __init__(self, where: list[str], free: Iterable[Tensor]) -> None:
        self.where = where
        self.bytes: Counter[str] = Counter()
        # Kept tensors stay alive here, so that no other storage takes the place of theirs.
        self.seen = {tensor.untyped_storage()._cdata: tensor for tensor in free}

    def add(self, tensor: Tensor) -> Tensor:
        """A pack hook of ``saved_tensors_hooks``."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.seen:
            self.seen[storage._cdata] = tensor
            self.bytes[self.where[-1]] += storage.nbytes()
        return tensor
