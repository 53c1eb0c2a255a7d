"""Retrieval between images and captions as a metric."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

CHUNK = 1024


class RetrievalRecall(Metric):
    """Recall at k, in percent, between images and their distinct captions.

    Each image searches the distinct captions and hits if its own is among the first k; each distinct
    caption searches the images and hits if any image that it belongs to is among the first k. Equal
    similarities count against a hit, so a model that maps everything to one point scores 0.

    Args:
        ks: The numbers k.
    """

    image: list[Tensor]
    text: list[Tensor]
    keys: list[Tensor]

    full_state_update = False
    higher_is_better = True

    def __init__(self, ks: tuple[int, ...] = (1, 5, 10)) -> None:
        super().__init__(compute_on_cpu=True)
        self.ks = ks
        for name in ("image", "text", "keys"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, image: Tensor, text: Tensor, keys: Tensor) -> None:
        """Takes in embeddings (B, C) of images and of their captions, and the captions' keys (B,)."""
        self.image.append(F.normalize(image.detach().float(), dim=-1))
        self.text.append(F.normalize(text.detach().float(), dim=-1))
        self.keys.append(keys)

    def compute(self) -> dict[str, Tensor]:
        """Returns ``image_to_text_R@k`` and ``text_to_image_R@k``, and ``num_images``, ``num_captions``."""
        image, text, keys = dim_zero_cat(self.image), dim_zero_cat(self.text), dim_zero_cat(self.keys)
        distinct, own = torch.unique(keys, return_inverse=True)
        first = torch.full_like(distinct, len(keys)).scatter_reduce(
            0, own, torch.arange(len(keys), device=own.device), "amin"
        )
        captions = text[first]

        to_text = []
        for rows, columns in zip(image.split(CHUNK), own.split(CHUNK), strict=True):
            similarity = rows @ captions.T
            hit = similarity.gather(1, columns[:, None])
            to_text.append((similarity >= hit).sum(dim=1) - 1)
        to_image = []
        for rows, number in zip(captions.split(CHUNK), torch.arange(len(distinct)).split(CHUNK), strict=True):
            similarity = rows @ image.T
            positive = number.to(own.device)[:, None] == own
            hit = similarity.masked_fill(~positive, -torch.inf).amax(dim=1, keepdim=True)
            to_image.append(((similarity >= hit) & ~positive).sum(dim=1))

        recalls = {}
        for name, ranks in (("image_to_text", torch.cat(to_text)), ("text_to_image", torch.cat(to_image))):
            for k in self.ks:
                recalls[f"{name}_R@{k}"] = 100 * (ranks < k).float().mean()
        counts = {"num_images": len(image), "num_captions": len(distinct)}
        return recalls | {name: torch.tensor(float(count)) for name, count in counts.items()}
