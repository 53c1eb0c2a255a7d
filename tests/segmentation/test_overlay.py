import numpy as np
import torch
from PIL import Image

from cgspn.segmentation.overlay import OPACITY, colours, overlay, write_prediction

PALETTE = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
CLASSES = ["wall", "sky", "tree"]


def test_colours_come_from_the_palette():
    drawn = colours(np.array([[0, 2], [1, 255]], np.uint8), PALETTE)
    assert drawn.tolist() == [[[255, 0, 0], [0, 0, 255]], [[0, 255, 0], [0, 0, 0]]]


def test_overlay_blends_and_keeps_the_pictures_place():
    image = Image.new("RGB", (500, 400), (100, 100, 100))
    labels = np.zeros((400, 500), np.uint8)
    labels[:, 250:] = 2
    sheet = overlay(image, labels, CLASSES, PALETTE)
    assert sheet.height == 400
    assert sheet.width > 500
    mixed = np.asarray(sheet)[10, 10]
    np.testing.assert_allclose(mixed, [(1 - OPACITY) * 100 + OPACITY * 255, 45, 45], atol=2)
    legend = np.asarray(sheet)[:, 500:].reshape(-1, 3)
    assert (legend == PALETTE[0]).all(1).any()
    assert (legend == PALETTE[2]).all(1).any()
    assert not (legend == PALETTE[1]).all(1).any()


def test_small_pictures_are_enlarged():
    sheet = overlay(Image.new("RGB", (8, 6)), np.zeros((6, 8), np.uint8), CLASSES, PALETTE)
    assert sheet.height >= 384


def test_label_maps_hold_the_benchmarks_ids(tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "a.jpg")
    labels = torch.tensor([[0, 1, 2], [149, 0, 0]])
    paths = write_prediction(tmp_path / "out", tmp_path / "a.jpg", labels, ["x"] * 150, [(1, 2, 3)] * 150)
    assert [path.name for path in paths] == ["a.png", "a_overlay.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(paths[0])), labels.numpy() + 1)
