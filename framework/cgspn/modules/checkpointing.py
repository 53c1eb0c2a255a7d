from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer


class ActivationCheckpointing(Callback):
    """Keeps only the blocks' inputs in training and computes the rest again in the backward pass.

    It turns ``set_grad_checkpointing`` of every encoder that trains on: less memory for about a third more
    work. Weights, gradients and checkpoints are the same as without it.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Turns it on.

        Raises:
            ValueError: If the model has nothing that can be checkpointed.
        """
        found = (getattr(module, "set_grad_checkpointing", None) for module in pl_module.modules())
        switches = [switch for switch in found if callable(switch)]
        if not switches:
            raise ValueError(f"{type(pl_module).__name__} has no encoder that can checkpoint activations.")
        for switch in switches:
            switch(True)
