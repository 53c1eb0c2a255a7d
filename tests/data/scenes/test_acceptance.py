"""Scenes must not be solved by colour or by single patches: that would make every encoder look good."""

import multiprocessing

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cgspn.data.scenes import CLASSES, draw_scene

SIZE, CELL = 64, 8
TRAIN, VAL = 1000, 200
EPOCHS, BATCH = 12, 32


def draw(item):
    scene = draw_scene(*item, SIZE)
    return scene.image, scene.labels


def scenes(seed, count):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        drawn = pool.map(draw, [(seed, index) for index in range(count)], chunksize=20)
    images = torch.from_numpy(np.stack([image for image, _ in drawn])).permute(0, 3, 1, 2)
    index = torch.full((256,), -100)
    index[torch.tensor(list(CLASSES.values()))] = torch.arange(len(CLASSES))
    labels = index[torch.from_numpy(np.stack([labels for _, labels in drawn])).long()]
    return images.float() / 127.5 - 1, labels


class Network(nn.Module):
    """A small encoder-decoder of convolutions."""

    def __init__(self):
        super().__init__()

        def block(inputs, outputs, stride=1, dilation=1):
            convolution = nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False)
            return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

        self.high = nn.Sequential(block(3, 24, 2), block(24, 64, 2), block(64, 64))
        self.low = nn.Sequential(block(64, 128, 2), block(128, 128), block(128, 128, dilation=2))
        self.context = nn.Linear(128, 128)
        self.up = block(128 + 64, 64)
        self.classify = nn.Conv2d(64, len(CLASSES), 1)

    def forward(self, images):
        high = self.high(images)
        low = self.low(high)
        low = low + self.context(low.mean((2, 3)))[..., None, None]
        return self.classify(self.up(torch.cat([F.interpolate(low, scale_factor=2.0), high], 1)))


def train(model, inputs, labels, lr, epochs):
    """Trains on every second pixel."""
    steps = epochs * len(inputs) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(len(inputs), (BATCH,), generator=generator)
        logits = F.interpolate(model(inputs[chosen]), size=(SIZE // 2, SIZE // 2), mode="bilinear")
        loss = F.cross_entropy(logits, labels[chosen][:, ::2, ::2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def mean_iou(model, inputs, labels):
    model.eval()
    with torch.no_grad():
        logits = torch.cat(
            [F.interpolate(model(part), size=(SIZE, SIZE), mode="bilinear") for part in inputs.split(50)]
        )
    valid = labels >= 0
    pairs = labels[valid] * len(CLASSES) + logits.argmax(1)[valid]
    confusion = torch.bincount(pairs, minlength=len(CLASSES) ** 2).view(len(CLASSES), -1).double()
    union = confusion.sum(0) + confusion.sum(1) - confusion.diag()
    present = confusion.sum(1) > 0
    assert present.sum() >= 24
    return 100 * (confusion.diag()[present] / union[present]).mean().item()


@pytest.mark.slow
def test_colour_and_patches_do_not_give_classes_away(record_property):
    images, labels = scenes(21, TRAIN)
    val_images, val_labels = scenes(22, VAL)
    figures = {}
    inputs = {
        "mean colour": lambda x: F.avg_pool2d(x, CELL),
        "raw patches": lambda x: F.pixel_unshuffle(x, CELL),
    }
    for name, cells in inputs.items():
        features, val_features = cells(images), cells(val_images)
        probe = nn.Sequential(
            nn.BatchNorm2d(features.shape[1]), nn.Conv2d(features.shape[1], len(CLASSES), 1)
        )
        train(probe, features, labels, 0.02, EPOCHS)
        figures[name] = mean_iou(probe, val_features, val_labels)
    network = Network()
    train(network, images, labels, 0.004, EPOCHS)
    figures["trained on labels"] = best = mean_iou(network, val_images, val_labels)
    for name, value in figures.items():
        record_property(name, round(value, 1))
        print(f"{name}: {value:.1f} mIoU, {100 * value / best:.0f} % of the network's")
    assert best > 20
    assert figures["mean colour"] < 0.25 * best
    assert figures["raw patches"] < 0.40 * best
