from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cgspn.segmentation._mmseg import IoUMetric


class PresentClassIoU(IoUMetric):
    """mmsegmentation's IoU metric with its mean over the classes that the ground truth holds.

    mmseg's own mean also counts, as 0, absent classes that were predicted somewhere; where every class is
    present, as on ADE20K, the two agree.

    Args:
        classes: Name of each class.
    """

    default_prefix = ""

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        self.dataset_meta = {"classes": tuple(classes)}

    def add(self, labels: Tensor, truth: Tensor) -> None:
        """Counts one picture.

        Args:
            labels: Predicted class indices, shape (H, W).
            truth: True ones, shape (H, W), 255 where ignored.
        """
        sample = {"pred_sem_seg": {"data": labels}, "gt_sem_seg": {"data": truth}}
        self.process({}, [sample])

    def compute_metrics(self, results: list) -> dict[str, Any]:
        """Figures in percent.

        Returns:
            ``mIoU``, ``aAcc``, ``mAcc``, ``num_classes_present``, ``num_images`` and ``classes``, a list of
            name, IoU, Acc and number of true pixels of each present class.
        """
        areas = [
            np.sum([area.double().numpy() for area in column], axis=0)
            for column in zip(*results, strict=True)
        ]
        intersect, union, predicted, true = areas
        with np.errstate(divide="ignore", invalid="ignore"):
            values = self.figures(intersect, union, predicted, true)
        present = np.flatnonzero(true)
        if not len(present):
            raise ValueError("The ground truth holds no class: every pixel is ignored.")
        names = self.dataset_meta["classes"]
        return {
            "mIoU": 100 * float(values["IoU"][present].mean()),
            "aAcc": 100 * float(values["aAcc"]),
            "mAcc": 100 * float(values["Acc"][present].mean()),
            "num_classes_present": len(present),
            "num_images": len(results),
            "classes": [
                {
                    "name": names[i].strip(),
                    "IoU": 100 * float(values["IoU"][i]),
                    "Acc": 100 * float(values["Acc"][i]),
                    "pixels": int(true[i]),
                }
                for i in present
            ],
        }

    def figures(self, *areas: np.ndarray) -> dict[str, np.ndarray]:
        """Applies mmseg's formula on areas in float64."""
        return self.total_area_to_metrics(*(torch.from_numpy(area) for area in areas))
