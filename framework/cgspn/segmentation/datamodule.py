from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from cgspn.data.transforms import MAX_SIDE
from cgspn.errors import are_numbers, check_at_least

NUM_CLASSES = 150


class ADE20KDataModule(LightningDataModule):
    """ADE20K, or any folder in its layout, through mmsegmentation's dataset and pipelines.

    The layout is ``images/{training,validation}`` and ``annotations/{training,validation}``, label maps
    being PNG files of uint8. Training pictures are resized at random, cropped, flipped and distorted in
    colour. Test pictures are resized, their label maps are not: predictions go back to the picture's size.

    Args:
        root: The folder with ``images`` and ``annotations``; only ``predict`` works without.
        images: Folder of pictures, or one picture, for ``predict``.
        reduce_zero_label: Whether id 0 is ignored and 1..150 are the classes, as in ADE20K.
        scale: Longest and shortest side in pixels that a picture is resized to fit, ratio kept; None
            leaves test pictures at their size and starts the random resize from the crop's size.
        ratio_range: Range of the random resize, as a factor of ``scale``.
        crop_size: Height and width of training samples in pixels.
        augment: Whether training samples are drawn at random; else pictures are resized to ``crop_size``.
        label_stride: The loss looks at one pixel in each cell of this side; metrics always look at all.
        cache: Whether samples stay in memory after the first epoch; needs ``augment`` off.
        batch_size: Training samples per step and device; the last incomplete batch is dropped.
        test_batch_size: Pictures per step and device otherwise; pictures of unequal size run one by one.
        num_workers: Processes that load data.

    Raises:
        ValueError: If a value, folder or file is wrong; the message names it.
    """

    def __init__(
        self,
        root: str | None = None,
        images: str | None = None,
        reduce_zero_label: bool = True,
        scale: tuple[int, int] | None = (2048, 512),
        ratio_range: tuple[float, float] = (0.5, 2.0),
        crop_size: tuple[int, int] = (512, 512),
        augment: bool = True,
        label_stride: int = 1,
        cache: bool = False,
        batch_size: int = 16,
        test_batch_size: int = 1,
        num_workers: int = 4,
    ) -> None:
        super().__init__()
        if cache and augment:
            raise ValueError(
                "cache=True keeps samples, augment=True draws new ones; set one of them to False."
            )
        for name, path in (("root", root), ("images", images)):
            if not isinstance(path, str | Path | None):
                raise ValueError(f"{name} must be a path, got {path!r}.")
        check_at_least(1, batch_size=batch_size, test_batch_size=test_batch_size, label_stride=label_stride)
        check_at_least(0, num_workers=num_workers)
        for name, sides in (("crop_size", crop_size), ("scale", (1, 1) if scale is None else scale)):
            if not are_numbers(sides, 2, int) or not 1 <= min(sides) <= max(sides) <= MAX_SIDE:
                raise ValueError(f"{name} must be two whole numbers from 1 to {MAX_SIDE}, got {sides!r}.")
        if not are_numbers(ratio_range, 2) or not 0 < ratio_range[0] <= ratio_range[1]:
            raise ValueError(f"ratio_range must be two positive numbers, ascending, got {ratio_range!r}.")
        if label_stride // 2 >= min(crop_size):
            raise ValueError(f"label_stride={label_stride} leaves no label of crop_size={tuple(crop_size)}.")
        self.root = root
        self.images = images
        self.reduce_zero_label = reduce_zero_label
        self.scale = scale
        self.ratio_range = ratio_range
        self.crop_size = crop_size
        self.augment = augment
        self.label_stride = label_stride
        self.cache = cache
        self.batch_size = batch_size
        self.test_batch_size = test_batch_size
        self.num_workers = num_workers
        self.datasets: dict[str, Any] = {}

    def setup(self, stage: str) -> None:
        """Finds the files that ``stage`` (fit, validate, test or predict) needs."""
        from cgspn.segmentation import dataset

        if stage == "predict":
            if not self.images:
                raise ValueError(
                    "No images are given: name the folder of pictures to predict (--data.images)."
                )
            pipeline = dataset.predict_pipeline(self.scale)
            self.datasets["predict"] = dataset.PictureFolder(self.images, pipeline)
            return
        if not self.root:
            raise ValueError("No root is given: name a folder in ADE20K's layout (--data.root).")
        if stage == "fit":
            pipeline = dataset.train_pipeline(
                NUM_CLASSES, self.scale, self.ratio_range, self.crop_size, self.augment, self.label_stride
            )
            train = dataset.ADE20KFolder(self.root, "training", pipeline, self.reduce_zero_label, self.cache)
            if len(train) < self.batch_size:
                raise ValueError(
                    f"batch_size={self.batch_size} is more than the {len(train)} training pictures."
                )
            self.datasets["train"] = train
        pipeline = dataset.test_pipeline(NUM_CLASSES, self.scale)
        self.datasets["test"] = dataset.ADE20KFolder(
            self.root, "validation", pipeline, self.reduce_zero_label, self.cache
        )

    def train_dataloader(self) -> DataLoader:
        """Shuffled training samples."""
        return self._loader("train", self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """The validation split."""
        return self._loader("test", self.test_batch_size)

    def test_dataloader(self) -> DataLoader:
        """The validation split again: ADE20K's own test labels are not public."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader:
        """The pictures of ``images``."""
        return self._loader("predict", self.test_batch_size)

    def _loader(self, name: str, batch_size: int, **options: Any) -> DataLoader:
        from cgspn.segmentation._mmseg import pseudo_collate

        return DataLoader(
            self.datasets[name],
            batch_size=batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=pseudo_collate,
            **options,
        )
