import time

import numpy as np
import pytest
from PIL import Image

from cgspn.data.scenes import CLASSES, draw_scene
from cgspn.data.scenes.caption import MAX_WORDS

WORDS = {"windowpane": "window", "person": "people", "bus": "bus"}


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(0, index) for index in range(160)]


def test_same_scene_again(scenes):
    again = draw_scene(0, 7)
    assert np.array_equal(again.image, scenes[7].image)
    assert np.array_equal(again.labels, scenes[7].labels)
    assert again.caption == scenes[7].caption


def test_seeds_and_indices_differ(scenes):
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)
    assert not np.array_equal(draw_scene(1, 7).image, scenes[7].image)


@pytest.mark.parametrize("size", [(64, 64), (37, 53), (96, 40), (8, 8)])
def test_shapes_and_types(size):
    scene = draw_scene(3, 1, *size)
    assert scene.image.shape == (*size, 3)
    assert scene.labels.shape == size
    assert scene.image.dtype == scene.labels.dtype == np.uint8
    assert 0 < len(scene.caption.split()) <= MAX_WORDS


def test_labels_are_classes_of_ade20k(scenes):
    seen = np.unique(np.concatenate([np.unique(scene.labels) for scene in scenes]))
    assert set(seen) <= {0, *CLASSES.values()}
    assert len(set(seen) - {0}) >= 24
    assert np.mean([(scene.labels == 0).mean() for scene in scenes]) < 0.001


def test_names_are_those_of_the_benchmark():
    names = pytest.importorskip("mmseg.datasets").ADE20KDataset.METAINFO["classes"]
    aliases = {"mountain": "mountain", "palm": "palm", "windowpane": "windowpane "}
    for name, number in CLASSES.items():
        assert names[number - 1].strip() == aliases.get(name, name).strip(), (name, names[number - 1])


def test_names_are_those_of_the_real_set(real_data):
    lines = (real_data / "ade20k_sample" / "objectInfo150.txt").read_text().splitlines()[1:]
    names = {int(line.split("\t")[0]): line.split("\t")[-1].split(",") for line in lines}
    for name, number in CLASSES.items():
        assert name in [alias.strip().split(" ")[0] for alias in names[number]], (name, names[number])


@pytest.mark.parametrize("size", [(64, 64), (48, 80)], ids=str)
def test_layout_is_the_same_at_every_size(size):
    agreement, finer = [], []
    for index in range(8):
        small, large = draw_scene(0, index, *size), draw_scene(0, index, 4 * size[0], 4 * size[1])
        shrunk = np.asarray(Image.fromarray(large.labels).resize(size[::-1], Image.Resampling.NEAREST))
        agreement.append((shrunk == small.labels).mean())
        blurred = Image.fromarray(large.image).resize(size[::-1], Image.Resampling.BOX)
        assert np.abs(np.asarray(blurred, float) - small.image).mean() < 16
        enlarged = blurred.resize(size[::-1] and large.image.shape[1::-1], Image.Resampling.BICUBIC)
        finer.append(np.abs(np.asarray(enlarged, float) - large.image).mean())
    assert min(agreement) > 0.9
    assert np.mean(agreement) > 0.96
    assert np.mean(finer) > 2, "larger pictures show no more detail than small ones"


def test_caption_names_what_is_drawn(scenes):
    names = {number: name for name, number in CLASSES.items()}
    named = total = 0
    for scene in scenes:
        ids, counts = np.unique(scene.labels, return_counts=True)
        for number in ids[(counts > 0.15 * scene.labels.size) & (ids > 0)]:
            name = names[number]
            total += 1
            stems = {name[:4], WORDS.get(name, name)[:4]}
            named += any(stem in scene.caption for stem in stems)
    assert named / total > 0.9
    assert len({scene.caption for scene in scenes}) > 0.9 * len(scenes)


def test_caption_names_nothing_else(scenes):
    for scene in scenes:
        present = {name for name, number in CLASSES.items() if (scene.labels == number).any()}
        for name in ("boat", "car", "bed", "sofa", "tent", "palm", "sky", "wall", "rug", "truck"):
            if name in scene.caption.replace(",", " ").replace("trees", "tree").split():
                assert name in present, scene.caption


def test_side_in_caption_is_right():
    checked = 0
    for index in range(150):
        scene = draw_scene(5, index)
        for side, sign in (("left", -1), ("right", 1)):
            for phrase in scene.caption.split(", "):
                if phrase.startswith("a tent") and phrase.endswith(side) and "and" not in phrase:
                    columns = np.nonzero(scene.labels == CLASSES["tent"])[1]
                    assert np.sign(columns.mean() - 31.5) == sign
                    checked += 1
    assert checked > 3


def test_contexts_share_colours():
    """The mean colours of a class vary more within it than between classes."""
    colours: dict[int, list] = {}
    for index in range(150):
        scene = draw_scene(11, index, 32)
        for number in np.unique(scene.labels):
            mask = scene.labels == number
            if mask.sum() > 20:
                colours.setdefault(int(number), []).append(scene.image[mask].mean(0))
    groups = [np.array(values) for values in colours.values() if len(values) >= 8]
    within = np.mean([values.std(0).mean() for values in groups])
    between = np.std([values.mean(0) for values in groups], axis=0).mean()
    assert within > 1.7 * between


@pytest.mark.parametrize(
    ("arguments", "message"), [((0, 0, 4), "8 x 8"), ((-1, 0), "seed"), ((0, -2), "index")]
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_scene(*arguments)


def test_speed():
    draw_scene(0, 0)
    times = []
    for index in range(60):
        start = time.process_time()
        draw_scene(0, index)
        times.append(time.process_time() - start)
    assert np.median(times) < 0.03, f"{1000 * np.median(times):.1f} ms a scene"
