"""The optimizer and schedule that the training stages share."""

from __future__ import annotations

import math

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

# What strategies put into the names of the parameters that they wrap.
WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")


def decayed_names(module: nn.Module) -> frozenset[str]:
    """Names of the parameters that weight decay acts on.

    It leaves alone what has fewer than two dimensions (biases, norms, scales) and what a submodule names in
    ``no_weight_decay()``. To be asked before a strategy such as FSDP turns parameters into flat shards.
    """
    exempt = {
        f"{prefix}.{name}" if prefix else name
        for prefix, submodule in module.named_modules()
        if callable(getattr(submodule, "no_weight_decay", None))
        for name in submodule.no_weight_decay()
    }
    return frozenset(name for name, p in module.named_parameters() if p.ndim >= 2 and name not in exempt)


def parameter_groups(
    module: nn.Module, decayed: frozenset[str], weight_decay: float
) -> list[dict[str, object]]:
    """The trainable parameters in two groups: those in ``decayed``, with weight decay, and the others."""
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            for wrapper in WRAPPERS:
                name = name.replace(wrapper, "")
            groups[name not in decayed].append(parameter)
    return [
        {"params": groups[0], "weight_decay": weight_decay},
        {"params": groups[1], "weight_decay": 0.0},
    ]


def check_optimization(
    lr: float, weight_decay: float, betas: tuple[float, float], warmup_steps: int
) -> tuple[float, float, tuple[float, float], int]:
    """Returns AdamW's settings.

    Raises:
        ValueError: If one is out of its range; the message names it.
    """
    # Beyond, torch raises an OverflowError in the first step.
    largest = torch.finfo(torch.float32).max
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        if not 0 <= value <= largest:
            raise ValueError(f"{name}={value} must be a number from 0 to {largest:.1e}.")
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas={tuple(betas)} must be two numbers in [0, 1).")
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps={warmup_steps} must be at least 0.")
    return lr, weight_decay, betas, warmup_steps


def warmup_cosine(step: int, warmup_steps: int, total_steps: int) -> float:
    """Factor on the learning rate: rises linearly from 1 / warmup_steps, then falls to 0 as a half cosine."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def adamw(
    module: LightningModule,
    decayed: frozenset[str],
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    warmup_steps: int,
) -> OptimizerLRSchedulerConfig:
    """AdamW over the module's trainable parameters, with warm-up and cosine decay over the whole run.

    ``decayed`` are the ``decayed_names`` of the module as it was built.

    Raises:
        ValueError: If the length of the run is unknown or the warm-up does not fit into it.
    """
    total_steps = module.trainer.estimated_stepping_batches
    if math.isinf(total_steps) or total_steps < 0:
        raise ValueError("The run's length is unknown, so its schedule is too: set trainer.max_steps.")
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps={warmup_steps} must lie between 0 and the run's {total_steps} steps.")
    optimizer = AdamW(parameter_groups(module, decayed, weight_decay), lr=lr, betas=betas)
    schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup_steps, int(total_steps)))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
