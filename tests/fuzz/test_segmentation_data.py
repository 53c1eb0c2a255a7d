"""Drawn pairs of pictures and label maps, arguments and scenes: just what is in the files, or one line."""

import json
import shutil
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.fuzz.harness import REFUSED, attempt, examples, run

from cgspn.segmentation import ADE20KDataModule

JUNK = st.sampled_from([0, -1, 2**70, 1.5, float("nan"), None, "", "x", [], [1], [0, 4], ["x", 1], {}, b"x"])
KEYS = "root images scale ratio_range crop_size label_stride batch_size test_batch_size cache".split()


@pytest.fixture(scope="module", autouse=True)
def mmseg():
    return pytest.importorskip("mmseg")


@pytest.fixture
def place(tmp_path_factory):
    """A function that gives an empty folder in ADE20K's layout."""
    folder = tmp_path_factory.mktemp("ade")

    def empty():
        shutil.rmtree(folder)
        for kind in ("images", "annotations"):
            for split in ("training", "validation"):
                (folder / kind / split).mkdir(parents=True)
        return folder

    return empty


@st.composite
def label_maps(draw):
    """A label map as it is written to a file."""
    shape = draw(st.tuples(st.integers(1, 9), st.integers(2, 9)))  # mmseg cannot read a single pixel
    highest = draw(st.sampled_from([0, 7, 150, 151, 255, 256, 300, 65535]))
    dtype = draw(st.sampled_from([np.uint8, np.uint16]))
    ids = np.zeros(shape, dtype)
    ids[0, 0] = ids[-1, -1] = min(highest, np.iinfo(dtype).max)
    return ids


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """A folder with one pair, and a module that reads it for each ``reduce_zero_label``."""
    folder = tmp_path_factory.mktemp("pair")
    for kind in ("images", "annotations"):
        (folder / kind / "validation").mkdir(parents=True)
        Image.new("L", (8, 6)).save(folder / kind / "validation/a.png")
    found = {}
    for reduce in (False, True):
        found[reduce] = ADE20KDataModule(str(folder), reduce_zero_label=reduce, scale=None, num_workers=0)
        found[reduce].setup("validate")
    return folder, found


@examples(150)
@given(data=st.data())
def test_pairs(modules, data):
    folder, reduce = modules[0], data.draw(st.booleans())
    ids = data.draw(label_maps())
    known = ids.max() in (range(151) if reduce else range(150)) or ids.max() == 255
    fits = data.draw(st.booleans())
    height, width = ids.shape if fits else (ids.shape[0] + 1, ids.shape[1])
    grey = np.full((height, width), 40 * 257, np.uint16) if data.draw(st.booleans()) else None
    picture = np.full((height, width, 3), 40, np.uint8) if grey is None else grey
    Image.fromarray(picture).save(folder / "images/validation/a.png")
    file = folder / "annotations/validation/a.png"
    Image.fromarray(ids).save(file)
    cut = data.draw(st.sampled_from([None, None, None, 0, 20, 40]))
    if cut is not None:
        file.write_bytes(file.read_bytes()[:cut])
    found = attempt(lambda: list(modules[1][reduce].val_dataloader()))
    assert (found is REFUSED) == (not known or not fits or cut is not None)
    if found is not REFUSED:
        [batch] = found
        classes = ids.astype(int)
        expected = np.where((classes == 0) | (classes == 255), 255, classes - 1) if reduce else classes
        np.testing.assert_array_equal(batch["data_samples"][0].gt_sem_seg.data[0].numpy(), expected)
        assert (batch["inputs"][0] == 40).all()


@examples(150)
@given(data=st.data())
def test_arguments(place, data):
    folder = place()
    for split in ("training", "validation"):
        Image.new("RGB", (8, 6), (9, 9, 9)).save(folder / f"images/{split}/a.png")
        Image.new("L", (8, 6), 7).save(folder / f"annotations/{split}/a.png")
    usual = {"root": str(folder), "batch_size": 1, "num_workers": 0, "crop_size": (8, 8), "scale": None}
    wrong = data.draw(st.dictionaries(st.sampled_from(KEYS), JUNK, min_size=1, max_size=2))
    module = attempt(ADE20KDataModule, **(usual | wrong))
    if module is REFUSED or module.num_workers:
        return
    if attempt(module.setup, "fit") is REFUSED:
        return
    for batch in [*module.train_dataloader(), *module.val_dataloader()]:
        assert {int(i) for i in batch["data_samples"][0].gt_sem_seg.data.unique()} <= {6, 255}


@examples(30)
@given(data=st.data())
def test_scenes(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("scenes")
    junk = st.sampled_from(["-1", "0", "1", "3", "x", "", "1.5", str(2**70), "nan"])
    form = data.draw(st.sampled_from(["ade20k", "shards"]))
    usual = {"--format": form, "--num": "2", "--num-val": "1", "--size": "16", "--num-workers": "1"}
    flags = usual | data.draw(
        st.dictionaries(st.sampled_from([*usual, "--seed", "--shard-size"]), junk, max_size=2)
    )
    if data.draw(st.integers(0, 5)) == 0:
        (folder / "out").mkdir()
        (folder / "out" / "scenes.json").write_text(data.draw(st.sampled_from(["{", "[]", "{}", ""])))
    out = run("scenes", folder / "out", *(word for flag in flags.items() for word in flag))
    if out is REFUSED:
        assert not (folder / "out/images").exists()
        assert not list(folder.glob("out/*.tar"))
        return
    num, side = int(flags["--num"]), int(flags["--size"])
    if flags["--format"] == "shards":
        sizes = json.loads((folder / "out/sizes.json").read_text())
        assert sum(n for name, n in sizes.items() if name.startswith("train")) == num
        for name, count in sizes.items():
            with tarfile.open(folder / "out" / name) as tar:
                assert len(tar.getnames()) == 3 * count
    else:
        names = list(folder.glob("out/images/training/*"))
        assert len(names) == num
        assert all(Image.open(name).size == (side, side) for name in names)
