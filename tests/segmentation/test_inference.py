import pytest
import torch
from torch.nn import functional

from cgspn.segmentation.inference import labels_at, slide_scores, window_starts


def pointwise(images):
    """A network whose scores look at one pixel: sliding changes nothing."""
    weight = torch.linspace(-1, 1, 15, dtype=images.dtype).view(5, 3, 1, 1)
    return functional.conv2d(images, weight)


@pytest.mark.parametrize("size", [(40, 56), (17, 33), (16, 16), (9, 50), (5, 7)])
@pytest.mark.parametrize("stride", [(16, 16), (11, 5)])
def test_sliding_equals_the_whole_where_windows_do_not_matter(size, stride):
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(slide_scores(pointwise, images, (16, 16), stride), pointwise(images))


def test_sliding_a_constant_field_equals_the_whole():
    def scores(images):
        pooled = functional.avg_pool2d(images, 4, ceil_mode=True, count_include_pad=False)
        return functional.interpolate(pointwise(pooled), images.shape[2:], mode="bilinear")

    images = torch.tensor([0.3, -1.0, 2.0]).view(1, 3, 1, 1).expand(1, 3, 41, 30)
    torch.testing.assert_close(slide_scores(scores, images, (16, 12), (8, 8)), scores(images))


def test_sliding_equals_mmsegmentation():
    from mmengine import ConfigDict
    from mmseg.models import EncoderDecoder

    def scores(images):
        return pointwise(images).cumsum(3).cumsum(2)

    class Segmentor:
        test_cfg = ConfigDict(stride=(7, 9), crop_size=(16, 12))
        out_channels = 5

        def encode_decode(self, images, metas):
            return scores(images)

    images = torch.randn(1, 3, 37, 50, dtype=torch.float64)
    expected = EncoderDecoder.slide_inference(Segmentor(), images, [{}])
    torch.testing.assert_close(slide_scores(scores, images, (16, 12), (7, 9)), expected)


@pytest.mark.parametrize(("extent", "size", "stride"), [(64, 16, 16), (65, 16, 10), (10, 16, 8), (16, 16, 1)])
def test_windows_cover_every_pixel_and_stay_inside(extent, size, stride):
    starts = window_starts(extent, size, stride)
    covered = set().union(*(range(s, min(s + size, extent)) for s in starts))
    assert covered == set(range(extent))
    assert starts == sorted(set(starts))
    assert all(start + size <= extent for start in starts) or starts == [0]


@pytest.mark.parametrize("size", [(8, 8), (31, 17), (64, 64)])
@pytest.mark.parametrize("num_classes", [3, 16, 50])
def test_labels_are_those_of_all_scores_resized_at_once(size, num_classes):
    scores = torch.randn(2, num_classes, 8, 8)
    resized = functional.interpolate(scores, size, mode="bilinear")
    torch.testing.assert_close(labels_at(scores, size), resized.argmax(1))
