"""The loss of stage 1."""

from __future__ import annotations

import torch
from torch import Tensor

from cgspn.losses.checks import check_features, check_positive


def relative_error(student: Tensor, teacher: Tensor, eps: float = 1e-12) -> Tensor:
    """Mean squared distance in units of the teacher's variance: 1 is what predicting the mean costs.

    Args:
        student: Shape (..., C).
        teacher: Same shape; the mean that counts is each channel's own, over all other axes.
        eps: Keeps the quotient finite where the teacher is constant.

    Returns:
        Scalar in float32.

    Source: the objective of stage 1 in arXiv:2606.00746; the division by the variance is ours.
    """
    check_features(student=student, teacher=teacher)
    check_positive("eps", eps, zero=True)
    if student.shape != teacher.shape:
        raise ValueError(
            f"Student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in shape."
        )
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = student.float().flatten(0, -2), teacher.float().flatten(0, -2)
        variance = teacher.var(dim=0, correction=0).mean()
        return (student - teacher).square().mean() / (variance + eps)
