"""A small LightningModule and DataModule for the command line's tests."""

from __future__ import annotations

import dataclasses
import os
import signal

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from cgspn.registry import BACKBONES, BackboneConfig


@dataclasses.dataclass
class Weights:
    """Weights of the loss.

    Args:
        near: First weight.
        far: Second weight.
    """

    near: float = 1.0
    far: float = 0.5


DEFAULT = Weights()


class TinyModule(pl.LightningModule):
    """Trains an encoder to have small features.

    Args:
        encoder: What is trained.
        teacher: Not used.
        weights: Weights of the loss.
        lr: Learning rate.
        kill: Name of a signal that training sends to its process group after two steps.
        fail: Whether training raises an error that is a bug.
    """

    def __init__(
        self,
        encoder: BackboneConfig,
        teacher: BackboneConfig | None = None,
        weights: Weights = DEFAULT,
        lr: float = 0.001,
        kill: str | None = None,
        fail: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.encoder = BACKBONES.build(encoder)
        self.lr, self.kill, self.fail = lr, kill, fail

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.fail:
            torch.zeros(2) + torch.zeros(3)
        if self.kill and self.trainer.global_step == 2:
            os.killpg(0, getattr(signal, self.kill))
        loss = self.encoder(batch).square().mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/loss", self.encoder(batch).square().mean())

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("test/loss", self.encoder(batch).square().mean())

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.encoder(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class Strike(pl.Callback):
    """Sends a signal to this process and its loaders as a batch starts.

    Args:
        name: Name of the signal.
        where: ``train``, ``validation`` or ``sanity``.
        number: How many such batches come before.
    """

    def __init__(self, name: str, where: str = "train", number: int = 0) -> None:
        self.name, self.where, self.left = name, where, number

    def count(self, where: str) -> None:
        if where == self.where:
            if self.left == 0:
                os.killpg(0, getattr(signal, self.name))
            self.left -= 1

    def on_train_batch_start(self, *arguments: object) -> None:
        self.count("train")

    def on_validation_batch_start(self, trainer: pl.Trainer, *arguments: object) -> None:
        self.count("sanity" if trainer.sanity_checking else "validation")


class OtherModule(TinyModule):
    """Another class with the same arguments."""


class TinyData(pl.LightningDataModule):
    """Noise.

    Args:
        length: Images.
        size: Their side.
        num_workers: Processes that load them.
    """

    def __init__(self, length: int = 8, size: int = 16, num_workers: int = 0) -> None:
        super().__init__()
        self.length, self.size, self.num_workers = length, size, num_workers

    def loader(self) -> DataLoader:
        images = torch.randn(self.length, 3, self.size, self.size, generator=torch.Generator().manual_seed(0))
        return DataLoader(images, batch_size=2, num_workers=self.num_workers)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader
