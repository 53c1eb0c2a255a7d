"""Feature supervision at taps: adapter, teacher statistics and the loss of stage 2."""

from __future__ import annotations

import typing
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from cgspn.errors import check_at_least
from cgspn.losses.checks import check_features, check_positive

KLDirection = Literal["student_teacher", "teacher_student"]

# Smallest deviation that a channel of a branch is divided by, in deviations of the stream it is added to.
BRANCH_FLOOR = 0.1


class TapAdapter(nn.Module):
    """``skip(x) + Linear(GELU(Linear(LayerNorm(x))))``, which starts as the identity path.

    The last layer starts at zero, so at first the adapter is ``skip``: exactly the identity when both sides
    have the same width, else a bias-free linear layer that starts orthogonal.

    Args:
        dim: Channels of the student.
        teacher_dim: Channels of the teacher.
        hidden_dim: Channels between the two layers; the student's by default.
    """

    def __init__(self, dim: int, teacher_dim: int, hidden_dim: int | None = None) -> None:
        super().__init__()
        hidden_dim = dim if hidden_dim is None else hidden_dim
        check_at_least(1, dim=dim, teacher_dim=teacher_dim, hidden_dim=hidden_dim)
        self.skip = nn.Identity() if dim == teacher_dim else nn.Linear(dim, teacher_dim, bias=False)
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, teacher_dim)
        if isinstance(self.skip, nn.Linear):
            nn.init.orthogonal_(self.skip.weight)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps student features (..., dim) to the teacher's channels, (..., teacher_dim)."""
        return self.skip(x) + self.fc2(F.gelu(self.fc1(self.norm(x))))


class ChannelStatistics(nn.Module):
    """Mean and variance of every channel over all tokens seen so far, on all ranks, in float32.

    Args:
        dim: Channels.
        eps: Added to each variance, in units of the channels' mean variance, before its root is taken: a
            branch may be small as a whole, but a channel that is constant must not become noise.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        check_at_least(1, dim=dim)
        self.eps = eps
        # An integer, which no conversion of the module to a lower precision touches.
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Takes in the tokens of ``x``, shape (..., C); collective, so every rank has to call it."""
        check_features(x=x)
        if x.shape[-1] != len(self.mean):
            raise ValueError(f"x must have {len(self.mean)} channels, got shape {tuple(x.shape)}.")
        tokens = x.detach().flatten(0, -2).double()
        count = torch.full((1,), len(tokens), dtype=torch.float64, device=x.device)
        # Sums around the present mean, so that their difference does not cancel.
        shifted = tokens - self.mean.double()
        sums = torch.cat([count, shifted.sum(dim=0), shifted.square().sum(dim=0)])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        new, (first, second) = sums[0], sums[1:].view(2, -1)
        total = self.count + new
        shift = first / total
        squares = self.variance.double() * self.count + second
        self.variance.copy_(squares / total - shift.square())
        self.mean.add_(shift)
        self.count.add_(new.long())

    def forward(self, x: Tensor, floor: Tensor | None = None) -> Tensor:
        """Standardises ``x``, shape (..., C), by the statistics; float32.

        Args:
            x: Features.
            floor: Smallest variance that counts, shape (C,).
        """
        variance = self.variance if floor is None else torch.maximum(self.variance, floor)
        return (x.float() - self.mean) * torch.rsqrt(variance + self.eps * variance.mean())


def channel_kl(
    student: Tensor, teacher: Tensor, temperature: float, direction: KLDirection = "student_teacher"
) -> Tensor:
    """KL divergence between the softmaxes over a token's channels, averaged over tokens.

    Args:
        student: Shape (..., C).
        teacher: Same shape.
        temperature: Divides both before the softmax.
        direction: ``student_teacher`` for KL(P(student) || P(teacher)), ``teacher_student`` for the reverse.

    Returns:
        Scalar in float32.
    """
    check_features(student=student, teacher=teacher)
    if student.shape != teacher.shape:
        raise ValueError(
            f"Student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in shape."
        )
    check_positive("temperature", temperature)
    _check_direction(direction)
    log_student = F.log_softmax(student.float() / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=-1)
    p, q = (log_student, log_teacher) if direction == "student_teacher" else (log_teacher, log_student)
    return (p.exp() * (p - q)).sum(dim=-1).mean()


def _check_direction(direction: str) -> None:
    if direction not in typing.get_args(KLDirection):
        valid = ", ".join(typing.get_args(KLDirection))
        raise ValueError(f"Unknown KL direction {direction!r}. Valid: {valid}.")


class TapLoss(nn.Module):
    """One tap: ``MSE(adapter(v_s), v_t) + kl_weight * KL(P(adapter(v_s)) || P(v_t))``.

    With ``standardize``, both sides are standardised per channel by the teacher's running statistics: the
    student before the adapter, so that an adapter at its start measures the distance to the teacher in units
    of the teacher's deviation instead of a difference of scales. A branch is added to a stream, and what is
    far below the stream's own deviation changes nothing downstream. So no channel of a branch is divided by
    less than ``BRANCH_FLOOR`` of the stream's deviation in that channel: without that floor, the loss of a
    branch of 1 % of its stream is 10,000 times steeper than the stream's own.

    Args:
        dim: Channels of the student.
        teacher_dim: Channels of the teacher.
        kl_weight: Factor lambda on the KL term; 0 leaves it out.
        temperature: Temperature tau of the softmax over channels.
        kl_direction: Which of the two comes first in the KL divergence.
        standardize: Whether to standardise; needs equal widths for the student's side, else only the
            teacher's is.
        branch: Whether the features are a residual branch, so that ``forward`` also needs the stream.

    Source: arXiv:2606.00746; standardisation, its floor, temperature and the adapter's start are ours.
    """

    def __init__(
        self,
        dim: int,
        teacher_dim: int,
        kl_weight: float = 0.1,
        temperature: float = 1.0,
        kl_direction: KLDirection = "student_teacher",
        standardize: bool = True,
        branch: bool = False,
    ) -> None:
        super().__init__()
        check_positive("temperature", temperature)
        check_positive("kl_weight", kl_weight, zero=True)
        _check_direction(kl_direction)
        self.adapter = TapAdapter(dim, teacher_dim)
        self.statistics = ChannelStatistics(teacher_dim) if standardize else None
        self.stream = ChannelStatistics(teacher_dim) if standardize and branch else None
        self.kl_weight = kl_weight
        self.temperature = temperature
        self.kl_direction: KLDirection = kl_direction
        self.dim, self.teacher_dim = dim, teacher_dim
        self.same_width = dim == teacher_dim

    def forward(
        self, student: Tensor, teacher: Tensor, stream: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compares features; in training mode the teacher's statistics take them in first.

        Args:
            student: Shape (..., dim).
            teacher: Shape (..., teacher_dim), the same leading axes.
            stream: What the teacher's branch is added to, of the teacher's shape; for a branch only.

        Returns:
            The squared error averaged over tokens and channels, and the KL term averaged over tokens and
            times ``kl_weight``; scalars in float32.
        """
        check_features(student=student, teacher=teacher)
        for name, tensor, width in (("student", student, self.dim), ("teacher", teacher, self.teacher_dim)):
            if tensor.shape[-1] != width:
                raise ValueError(f"{name} must have {width} channels, got shape {tuple(tensor.shape)}.")
        if student.shape[:-1] != teacher.shape[:-1]:
            raise ValueError(
                f"Student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in tokens."
            )
        teacher = teacher.detach().float()
        if self.statistics is not None:
            if self.training:
                self.statistics.update(teacher)
            floor = None
            if self.stream is not None:
                if stream is None:
                    raise ValueError("A branch is standardised in proportion to its stream; none was given.")
                check_features(stream=stream, teacher=teacher)
                if stream.shape != teacher.shape:
                    raise ValueError(
                        f"stream must have the teacher's shape {tuple(teacher.shape)}, "
                        f"got {tuple(stream.shape)}."
                    )
                if self.training:
                    self.stream.update(stream)
                floor = BRANCH_FLOOR**2 * self.stream.variance
            teacher = self.statistics(teacher, floor)
            student = self.statistics(student, floor) if self.same_width else student
        adapted = self.adapter(student).float()
        error = F.mse_loss(adapted, teacher)
        if not self.kl_weight:
            return error, error.new_zeros(())
        kl = channel_kl(adapted, teacher, self.temperature, self.kl_direction)
        return error, self.kl_weight * kl
