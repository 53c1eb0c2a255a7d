"""Folders in the layout of ADE20K's benchmark, read by mmsegmentation's dataset and pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from cgspn.data.transforms import to_rgb
from cgspn.segmentation._mmseg import (
    ADE20KDataset,
    BaseTransform,
    LoadAnnotations,
    LoadImageFromFile,
    PackSegInputs,
    Pad,
    PhotoMetricDistortion,
    RandomCrop,
    RandomFlip,
    RandomResize,
    Resize,
)

IGNORE_INDEX = 255
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
# Pillow's modes of 16 and 32 bits.
MORE_THAN_A_BYTE = ("I", "F")
# The mean colour of ImageNet in BGR: what a network takes for "nothing" once the mean is subtracted.
PAD_COLOUR = (104, 116, 124)


class ReadImage(LoadImageFromFile):
    """mmcv's loader through Pillow, which unlike OpenCV refuses truncated files."""

    def __init__(self) -> None:
        super().__init__(imdecode_backend="pillow")

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Adds ``img`` (H, W, 3), uint8, BGR."""
        try:
            read = super().transform(results)
            with Image.open(results["img_path"]) as image:
                if read is not None and image.mode.startswith(MORE_THAN_A_BYTE):
                    read["img"] = np.ascontiguousarray(np.asarray(to_rgb(image))[..., ::-1])
            return read
        except Exception as error:
            reason = "it is no picture" if isinstance(error, UnidentifiedImageError) else error
            raise ValueError(f"Cannot read the image {results['img_path']}: {reason}") from error


class ReadLabels(LoadAnnotations):
    """mmseg's loader of label maps, with checks that name the file."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Adds ``gt_seg_map`` (H, W), uint8: class indices from 0, and 255 for ignored pixels."""
        path = results["seg_map_path"]
        try:
            results = super().transform(results)
        except Exception as error:
            reason = "it is no picture" if isinstance(error, UnidentifiedImageError) else error
            raise ValueError(f"Cannot read the label map {path}: {reason}") from error
        with Image.open(path) as image:
            # The loader takes the lowest byte of every id.
            if (
                image.mode.startswith(MORE_THAN_A_BYTE)
                and (highest := np.asarray(image).max()) > IGNORE_INDEX
            ):
                raise ValueError(f"The label map {path} holds the id {highest}; ids are 0 to {IGNORE_INDEX}.")
            if results["gt_seg_map"].ndim < 2:
                # The loader drops sides of one pixel.
                results["gt_seg_map"] = results["gt_seg_map"].reshape(image.height, image.width)
        labels = results["gt_seg_map"]
        if labels.shape != results["ori_shape"]:
            raise ValueError(
                f"The label map {path} has shape {labels.shape}, its image {results['ori_shape']} "
                f"({results['img_path']})."
            )
        highest = labels[labels != IGNORE_INDEX].max(initial=0)
        if highest >= self.num_classes:
            offset = int(bool(results["reduce_zero_label"]))
            raise ValueError(
                f"The label map {path} holds the id {highest + offset}; "
                f"valid: {offset} to {self.num_classes - 1 + offset}, and ignored ones."
            )
        return results


class SubsampleLabels(BaseTransform):
    """Keeps one label of every ``stride`` x ``stride`` cell, the one in its middle."""

    def __init__(self, stride: int) -> None:
        self.stride = stride

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Shrinks ``gt_seg_map``."""
        first = self.stride // 2
        results["gt_seg_map"] = results["gt_seg_map"][first :: self.stride, first :: self.stride]
        return results


def train_pipeline(
    num_classes: int,
    scale: tuple[int, int] | None,
    ratio_range: tuple[float, float],
    crop_size: tuple[int, int],
    augment: bool,
    label_stride: int,
) -> list[BaseTransform]:
    """Mmsegmentation's training pipeline of ADE20K; without ``augment`` a resize to the crop's size."""
    height, width = crop_size
    steps: list[BaseTransform] = [ReadImage(), ReadLabels(num_classes)]
    if augment:
        steps += [
            RandomResize(scale=scale or (width, height), ratio_range=ratio_range, keep_ratio=True),
            RandomCrop(crop_size=crop_size, cat_max_ratio=0.75),
            RandomFlip(prob=0.5),
            PhotoMetricDistortion(),
            Pad(size=(width, height), pad_val={"img": PAD_COLOUR, "seg": IGNORE_INDEX}),
        ]
    else:
        steps += [Resize(scale=(width, height), keep_ratio=False)]
    if label_stride > 1:
        steps += [SubsampleLabels(label_stride)]
    return [*steps, PackSegInputs()]


def test_pipeline(num_classes: int, scale: tuple[int, int] | None) -> list[BaseTransform]:
    """The test pipeline in mmsegmentation: the image is resized, the label map never is."""
    return [ReadImage(), *resize(scale), ReadLabels(num_classes), PackSegInputs()]


def predict_pipeline(scale: tuple[int, int] | None) -> list[BaseTransform]:
    """The test pipeline for pictures without label maps."""
    return [ReadImage(), *resize(scale), PackSegInputs()]


def resize(scale: tuple[int, int] | None) -> list[BaseTransform]:
    """A resize that keeps the ratio, or nothing."""
    return [] if scale is None else [Resize(scale=scale, keep_ratio=True)]


class ADE20KFolder(ADE20KDataset):
    """One split of a folder in ADE20K's layout.

    Args:
        root: Folder with ``images/<split>`` and ``annotations/<split>``.
        split: Name of the subfolders.
        pipeline: Transforms of a sample.
        reduce_zero_label: Whether id 0 means ignore and 1..150 are the classes, as in ADE20K.
        cache: Whether transformed samples stay in memory; right only for pipelines without chance.

    Raises:
        ValueError: If a folder is missing or empty, or an image has no label map.
    """

    def __init__(
        self, root: str, split: str, pipeline: list[BaseTransform], reduce_zero_label: bool, cache: bool
    ) -> None:
        images, annotations = Path(root, "images", split), Path(root, "annotations", split)
        for folder in (images, annotations):
            if not folder.is_dir():
                raise ValueError(
                    f"There is no folder {folder}; ADE20K's layout is images/{split} and annotations/{split}."
                )
        names = pictures(images)
        suffixes = sorted({path.suffix for path in names})
        if len(suffixes) > 1:
            raise ValueError(f"{images} mixes {', '.join(suffixes)}; one kind of file is needed.")
        for path in names:
            if not (annotations / f"{path.stem}.png").is_file():
                raise ValueError(f"The image {path} has no label map {annotations / path.stem}.png.")
        self.cache: dict[int, Any] | None = {} if cache else None
        super().__init__(
            data_prefix={"img_path": str(images), "seg_map_path": str(annotations)},
            img_suffix=suffixes[0],
            reduce_zero_label=reduce_zero_label,
            pipeline=pipeline,
        )

    def prepare_data(self, idx: int) -> Any:
        """The transformed sample ``idx``."""
        if self.cache is None:
            return super().prepare_data(idx)
        if idx not in self.cache:
            self.cache[idx] = super().prepare_data(idx)
        return self.cache[idx]


class PictureFolder(Dataset):
    """Pictures of any size without label maps, for prediction.

    Args:
        path: A folder, or one picture.
        pipeline: Transforms of a sample.

    Raises:
        ValueError: If the path is missing, or holds no picture or two of one name.
    """

    def __init__(self, path: str, pipeline: list[BaseTransform]) -> None:
        self.paths = [Path(path)] if Path(path).is_file() else pictures(Path(path))
        stems = [path.stem for path in self.paths]
        if twice := {stem for stem in stems if stems.count(stem) > 1}:
            raise ValueError(
                f"{path} holds several pictures named {min(twice)}; their outputs would collide."
            )
        self.pipeline = pipeline

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        results: Any = {"img_path": str(self.paths[index])}
        for transform in self.pipeline:
            results = transform(results)
        return results


def pictures(folder: Path) -> list[Path]:
    """Sorted picture files of a folder.

    Raises:
        ValueError: If there are none.
    """
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise ValueError(f"The folder {folder} holds no picture; valid: {', '.join(IMAGE_SUFFIXES)}.")
    return paths
