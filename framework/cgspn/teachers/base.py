from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from cgspn.backbones.vision_transformer import EncoderOutput, EncoderTrace, VisionEncoder


class TextTower(Protocol):
    """What a teacher needs of a text tower: an ``nn.Module`` with its tokenizer inside."""

    @property
    def tokenizer(self) -> Callable[[Sequence[str]], Tensor | Mapping[str, Tensor]]:
        """Makes of texts what the tower reads."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embeds B texts, (B, C) with C the channels of the vision tower's summary."""


class Teacher(nn.Module):
    """A frozen model to learn from: always in evaluation mode, without gradients.

    Args:
        encoder: The vision tower.
        text: The text tower, an ``nn.Module``, or None.
        logit_scale: Logarithm of the factor on the cosines, as trained; None if it is unknown.
        logit_bias: What is added to the scaled cosines, as trained; None if there is none.
    """

    encoder: VisionEncoder
    text: TextTower | None

    def __init__(
        self,
        encoder: VisionEncoder,
        text: TextTower | None = None,
        logit_scale: float | None = None,
        logit_bias: float | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.text = text
        self.logit_scale = logit_scale
        self.logit_bias = logit_bias
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode whatever ``mode`` says, so that a trainer cannot switch it."""
        return super().train(False)

    @property
    def img_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images it was trained on."""
        return self.encoder.img_size

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel that its images are normalised by, for values in [0, 1]."""
        return self.encoder.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel that its images are normalised by."""
        return self.encoder.std

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> EncoderOutput:
        """Summary (B, C) and features (B, H, W, C) of normalised images (B, 3, height, width)."""
        return self.encoder.encode(images)

    @torch.no_grad()
    def trace(self, images: Tensor, blocks: Sequence[int] | None = None) -> EncoderTrace:
        """What goes in and out of the given blocks (None: all of them), with the output."""
        return self.encoder.forward_with_taps(images, blocks)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Embeds B texts, (B, C), not normalised.

        Raises:
            ValueError: If the teacher has no text tower, or ``texts`` is no list of strings or empty.
        """
        if self.text is None:
            raise ValueError(f"The teacher {type(self).__name__} has no text tower.")
        strings = isinstance(texts, Sequence) and all(isinstance(text, str) for text in texts)
        # A tokenizer may take one string for a list of letters.
        if isinstance(texts, str) or not strings or not texts:
            raise ValueError(f"texts must be a list of strings, at least one, got {texts!r:.80}.")
        return self.text.encode(texts)
