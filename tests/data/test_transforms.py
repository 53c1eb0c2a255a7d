import numpy as np
import pytest
import torch
from PIL import Image

from cgspn.data import ImageTransform


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_normalises_by_mean_and_std():
    image = picture(20, 12)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    result = ImageTransform((12, 20), mean, std)(image)
    expected = (np.asarray(image, np.float64) / 255 - mean) / std
    assert result.dtype == torch.float32
    assert result.is_contiguous()
    torch.testing.assert_close(
        result.double(), torch.from_numpy(expected).permute(2, 0, 1), rtol=1e-5, atol=1e-5
    )


def test_covers_and_keeps_the_centre():
    pixels = np.zeros((40, 100, 3), np.uint8)
    pixels[:, 30:70] = 200
    result = ImageTransform(20).pixels(Image.fromarray(pixels))
    assert result.shape == (20, 20, 3)
    assert (result[:, 1:-1] > 180).all()


def test_resizing_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert (
        np.abs(ImageTransform(16).pixels(Image.fromarray(stripes)).astype(int)[2:-2, 2:-2] - 127).max() < 12
    )


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "I;16"])
def test_any_mode_becomes_rgb(mode):
    image = Image.new(mode, (9, 9)) if mode == "I;16" else picture(9, 9).convert("RGB").convert(mode)
    assert ImageTransform(8).pixels(image).shape == (8, 8, 3)


def test_transparent_is_white():
    assert (ImageTransform(4).pixels(Image.new("RGBA", (4, 4), (10, 20, 30, 0))) == 255).all()


def test_random_crop_and_flip_follow_the_generator():
    transform, image = ImageTransform(16, crop=0.3, flip=True), picture(40, 30)
    first = [transform.pixels(image, np.random.default_rng(k)) for k in range(8)]
    again = [transform.pixels(image, np.random.default_rng(k)) for k in range(8)]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({pixels.tobytes() for pixels in first}) == 8
    assert np.array_equal(transform.pixels(image), ImageTransform(16).pixels(image))


def test_flip_mirrors_about_half():
    transform, image = ImageTransform(8, flip=True), picture(8, 8)
    plain = np.asarray(image)
    mirrored = [
        np.array_equal(transform.pixels(image, np.random.default_rng(k)), plain[:, ::-1]) for k in range(200)
    ]
    assert 70 < sum(mirrored) < 130


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size"),
        ({"size": 8, "std": (1, 0, 1)}, "std"),
        ({"size": 8, "mean": (1, 0)}, "three values"),
        ({"size": 8, "crop": 0.0}, "crop"),
        ({"size": 8, "crop": 1.5}, "crop"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageTransform(**arguments)
