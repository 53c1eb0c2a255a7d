"""The optimizer and schedule that the training stages share."""

from __future__ import annotations

import math

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Splits the trainable parameters by weight decay.

    Parameters with fewer than two dimensions (biases, norms, scales) get none, nor do those that a
    submodule names in ``no_weight_decay()``.
    """
    exempt = {
        f"{prefix}.{name}" if prefix else name
        for prefix, submodule in module.named_modules()
        if callable(getattr(submodule, "no_weight_decay", None))
        for name in submodule.no_weight_decay()
    }
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    plain = [p for name, p in trainable.items() if p.ndim < 2 or name in exempt]
    decayed = [p for name, p in trainable.items() if p.ndim >= 2 and name not in exempt]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def warmup_cosine(step: int, warmup_steps: int, total_steps: int) -> float:
    """Factor on the learning rate: rises linearly from 1 / warmup_steps, then falls to 0 as a half cosine."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def adamw(
    module: LightningModule, lr: float, weight_decay: float, betas: tuple[float, float], warmup_steps: int
) -> OptimizerLRSchedulerConfig:
    """AdamW over the module's trainable parameters, with warm-up and cosine decay over the whole run.

    Raises:
        ValueError: If the length of the run is unknown or the warm-up does not fit into it.
    """
    total_steps = module.trainer.estimated_stepping_batches
    if math.isinf(total_steps) or total_steps < 0:
        raise ValueError("The run's length is unknown, so its schedule is too: set trainer.max_steps.")
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps={warmup_steps} must lie between 0 and the run's {total_steps} steps.")
    optimizer = AdamW(parameter_groups(module, weight_decay), lr=lr, betas=betas)
    schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup_steps, int(total_steps)))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
