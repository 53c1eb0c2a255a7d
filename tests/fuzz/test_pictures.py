"""Pictures of any mode and size, and bad arguments, for the transform; what is accepted has known values."""

import io

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.fuzz.harness import REFUSED, attempt, examples

import cgspn

SIDES = st.integers(1, 40)
SIZES = st.one_of(
    SIDES,
    st.tuples(SIDES, SIDES),
    st.sampled_from([0, -1, 2**70, 1.5, "x", "16", None, True, [], [8], [1, 2, 3], [0, 4], [4, "4"], {8: 8}]),
)
CHANNELS = st.one_of(
    st.lists(st.floats(0.1, 0.9), min_size=3, max_size=3),
    st.sampled_from([None, 0.5, "abc", [], [0.5], [0.5] * 4, [0.5, 0.5, "x"], [0.0] * 3, [-1.0, 1.0, 1.0]]),
    st.sampled_from([[float("nan")] * 3, [float("inf")] * 3, [1e-320] * 3, [True] * 3, torch.ones(3)]),
)
CROPS = st.sampled_from([None, None, 0.3, 1.0, 1, 0, -0.5, 1.5, float("nan"), "x", [0.5]])
# One colour in every mode and what it is in RGB.
COLOURS = [
    ("1", 1, (255, 255, 255)),
    ("L", 77, (77, 77, 77)),
    ("LA", (77, 0), (255, 255, 255)),
    ("RGB", (10, 100, 200), (10, 100, 200)),
    ("RGBA", (10, 100, 200, 255), (10, 100, 200)),
    ("RGBA", (10, 100, 200, 0), (255, 255, 255)),
    ("RGBA", (0, 100, 255, 51), (204, 224, 255)),
    ("CMYK", (0, 255, 51, 0), (255, 0, 204)),
    ("HSV", (0, 255, 255), (255, 0, 0)),
    ("YCbCr", (128, 128, 128), (128, 128, 128)),
    ("I;16", 77 * 257, (77, 77, 77)),
    ("I", 77 * 257, (77, 77, 77)),
]
NOT_RGB = [("F", 0.5), ("I", 70000), ("I", -1), ("LAB", (50, 0, 0))]
NO_PICTURES = [
    None,
    3,
    "a.jpg",
    np.zeros((4, 4, 3), np.uint8),
    torch.zeros(3, 4, 4),
    Image.new("RGB", (0, 4)),
]


def saved(image, kind):
    """The picture as read back from a file, which is not decoded yet."""
    file = io.BytesIO()
    image.save(file, kind)
    return Image.open(file)


@examples(200)
@given(data=st.data())
def test_one_colour_stays_one_colour(data):
    transform = attempt(
        cgspn.ImageTransform,
        data.draw(SIZES),
        *(data.draw(CHANNELS) for _ in range(2)),
        crop=data.draw(CROPS),
        flip=data.draw(st.booleans()),
    )
    if transform is REFUSED:
        return
    mode, value, colour = data.draw(st.sampled_from(COLOURS))
    image = Image.new(mode, (data.draw(SIDES), data.draw(SIDES)), value)
    if mode not in ("HSV", "YCbCr", "I") and data.draw(st.booleans()):
        image = saved(image, "TIFF" if mode == "CMYK" else "PNG")
    rng = data.draw(st.sampled_from([None, np.random.default_rng(0)]))
    found = attempt(transform, image, rng)
    assert found.shape == (3, transform.height, transform.width)
    expected = (torch.tensor(colour) / 255 - torch.tensor(transform.mean)) / torch.tensor(transform.std)
    torch.testing.assert_close(
        found,
        expected.float().view(3, 1, 1).expand_as(found),
        rtol=1e-4,
        atol=1.01 / 255 / min(transform.std),
    )


@examples(100)
@given(size=st.tuples(SIDES, SIDES), width=SIDES, height=SIDES, kind=st.sampled_from(["", "PNG", "BMP"]))
def test_a_ramp_keeps_its_place(size, width, height, kind):
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    image = Image.fromarray(np.stack([5 * x, 5 * y, np.full_like(x, 9)], -1).astype(np.uint8))
    found = attempt(cgspn.ImageTransform(size).pixels, saved(image, kind) if kind else image).astype(float)
    scale = min(width / size[1], height / size[0])
    # Bicubic weights reach over two pixels of the coarser grid; beyond the edge they see no ramp.
    reach = 2 * max(scale, 1)
    for axis, (channel, extent, sides) in enumerate([(1, height, size[0]), (0, width, size[1])]):
        place = (extent - scale * sides) / 2 + (np.arange(sides) + 0.5) * scale
        inside = (place > reach) & (place < extent - reach)
        line = np.moveaxis(found[..., channel], axis, 0)[inside]
        assert np.abs(line - 5 * (place[inside, None] - 0.5)).max(initial=0) < 1.1
    assert (found[..., 2] == 9).all()


@examples(100)
@given(data=st.data())
def test_what_is_no_rgb_picture(data):
    transform = cgspn.ImageTransform(8, crop=data.draw(st.sampled_from([None, 0.5])))
    rng = data.draw(st.sampled_from([None, np.random.default_rng(0), 3, "x"]))
    mode_and_value = data.draw(st.sampled_from(NOT_RGB))
    picture = data.draw(
        st.sampled_from([Image.new(mode_and_value[0], (5, 4), mode_and_value[1]), *NO_PICTURES])
    )
    assert attempt(transform, picture, rng) is REFUSED


@examples(100)
@given(data=st.data())
def test_damaged_pictures(data):
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(noise).save(
        file, data.draw(st.sampled_from(["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"]))
    )
    content = bytearray(file.getvalue())
    content = content[: data.draw(st.integers(0, len(content) - 1))]
    for _ in range(data.draw(st.integers(0, 3)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))

    def read():
        with Image.open(io.BytesIO(content)) as image:
            return cgspn.ImageTransform(8).pixels(image)

    try:
        assert read().shape == (8, 8, 3)
    except (OSError, ValueError, SyntaxError):
        # What the data sets count as a bad sample.
        return
