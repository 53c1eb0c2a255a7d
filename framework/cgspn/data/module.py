"""What the DataModules share: the transform, where this process stands, and the loaders."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from cgspn.data.bad_samples import BadSamples
from cgspn.data.collate import Collate
from cgspn.data.loader import EpochBatches, EpochLoader, Epochs, EvaluationLoader, Position
from cgspn.data.transforms import ImageTransform
from cgspn.errors import check_at_least


class ImageDataModule(LightningDataModule, abc.ABC):
    """Base of the DataModules for pictures.

    Args:
        batch_size: Samples in a batch of one process.
        image_size: Side of the encoder's square input, or (height, width).
        mean: Mean of each channel that the encoder expects, of a picture in [0, 1].
        std: Standard deviation of each channel that the encoder expects.
        crop: Smallest share of a training picture that a random crop keeps; None takes no random crop.
        flip: Whether training pictures are mirrored at random.
        seed: Seed of the order and the augmentation.
        num_workers: Processes that load.
    """

    def __init__(
        self,
        batch_size: int,
        image_size: int | Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        crop: float | None,
        flip: bool,
        seed: int,
        num_workers: int,
    ) -> None:
        super().__init__()
        check_at_least(1, batch_size=batch_size)
        check_at_least(0, num_workers=num_workers, seed=seed)
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers
        self.transform = ImageTransform(image_size, mean, std)
        self.train_transform = ImageTransform(image_size, mean, std, crop, flip)
        self.bad_samples = BadSamples()
        self._training: EpochLoader | None = None
        self._resumed: Mapping[str, Any] | None = None

    def setup(self, stage: str) -> None:
        """Looks for the validation data before training, which would reach them only after an epoch."""
        if stage == "fit" and (self.trainer is None or self.trainer.limit_val_batches):
            self.find("val")

    @abc.abstractmethod
    def find(self, split: str) -> None:
        """Raises OSError or ValueError if the data of a split are named and are not there."""

    @property
    def rank(self) -> int:
        """Number of this process among all that train."""
        return self.trainer.global_rank if self.trainer is not None else 0

    @property
    def world_size(self) -> int:
        """Number of processes that train."""
        return self.trainer.world_size if self.trainer is not None else 1

    def position(self) -> Position:
        """How far training has come."""
        if self.trainer is None:
            return Position(0, 0)
        progress, epoch = self.trainer.fit_loop.epoch_loop.batch_progress, self.trainer.current_epoch
        done = progress.state_dict()["current"]["processed"]
        return Position(epoch, done, finished=progress.is_last_batch and done > 0)

    def loader(
        self, dataset: Dataset, size: int, collate: Collate, train: bool
    ) -> EpochLoader | EvaluationLoader:
        """A loader of a data set that is read by (index, epoch), shuffled for training."""
        batches = EpochBatches(
            size, self.batch_size, self.seed if train else None, self.rank, self.world_size
        )
        if train and not len(batches):
            needed = f"a batch of {self.batch_size} on each of {self.world_size} processes"
            raise ValueError(f"{size} training samples do not fill {needed}.")
        loader = DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=self.num_workers,
            collate_fn=collate,
            generator=torch.Generator(),
            # The indices come from this process, so workers need not start anew with every epoch.
            persistent_workers=train and self.num_workers > 0,
        )
        if not train:
            return EvaluationLoader(loader, len(batches), f"None of the {size} samples can be read.")
        order = {
            "samples": size,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "world_size": self.world_size,
        }
        return self.training_loader(loader, batches, order)

    def training_loader(
        self, loader: DataLoader, epochs: Epochs, order: Mapping[str, Any], **options: Any
    ) -> EpochLoader:
        """An ``EpochLoader`` that starts where the checkpoint says from which training goes on."""
        self._training = EpochLoader(loader, epochs, self.position, order, **options)
        if self._resumed is not None:
            self._training.load_state_dict(self._resumed)
            self._resumed = None
        return self._training

    def state_dict(self) -> dict[str, Any]:
        """The training loader's state.

        Lightning saves it with the loop's too, but does not restore that one where the number of training
        batches is asked for early, as a schedule over ``max_epochs`` does.
        """
        return {} if self._training is None else {"train": self._training.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the training loader's state until there is a training loader."""
        self._resumed = state_dict.get("train")

    def teardown(self, stage: str) -> None:
        """Says how many samples were left out, if any."""
        if count := self.bad_samples.count:
            print(f"{count} bad samples were left out.")
