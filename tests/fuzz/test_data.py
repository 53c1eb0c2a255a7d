"""Bad arguments, folders and files for the DataModules; batches hold just what can be read."""

import io
import shutil
import tarfile
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.fuzz.harness import REFUSED, attempt, examples

from cgspn.data import ImageFolderDataModule, WebDatasetDataModule

BLACK = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
JUNK = st.sampled_from(
    [
        0,
        1,
        2,
        -1,
        2**70,
        1.5,
        float("nan"),
        None,
        True,
        "",
        "x",
        "3",
        "no/such",
        [],
        [1],
        ["x"],
        {},
        {"a": 1},
        b"x",
    ]
)
VALUES = st.integers(0, 24).map(lambda k: 10 * k)


def encoded(value, kind="PNG"):
    """A picture of 10 x 12 in one brightness, which tells pictures apart, as a file."""
    file = io.BytesIO()
    Image.new("RGB", (12, 10), (value,) * 3).save(file, kind)
    return file.getvalue()


def brightness(image):
    """The brightness of a picture of one colour, in 0 to 255."""
    assert image.max() - image.min() < 0.01
    return round(255 * image.mean().item())


@st.composite
def pictures(draw):
    """A file and the brightness of the picture in it, or None if it cannot be read."""
    value = draw(VALUES)
    content = encoded(value)
    wrong = draw(st.integers(0, 7))
    if wrong > 2:
        return content, value
    return (b"", b"no picture", content[: len(content) // 2])[wrong], None


@st.composite
def arguments(draw, keys, **usual):
    """The usual arguments with up to two replaced by junk."""
    return usual | draw(st.dictionaries(st.sampled_from(keys), JUNK, max_size=2))


@pytest.fixture
def place(tmp_path_factory):
    """A function that gives an empty folder."""
    folder = tmp_path_factory.mktemp("data")

    def empty():
        shutil.rmtree(folder)
        folder.mkdir()
        return folder

    return empty


def batches(module, loader):
    """The batches of one epoch, or REFUSED, and how many samples were counted as bad."""
    with warnings.catch_warnings(action="ignore"):
        found = attempt(lambda: list(getattr(module, loader)()))
    return found, module.bad_samples.count


@examples(100)
@given(data=st.data())
def test_folders(place, data):
    folder = place()
    content = data.draw(st.lists(pictures(), max_size=6))
    for number, (file, _) in enumerate(content):
        (folder / f"{number}.png").write_bytes(file)
    size = data.draw(st.integers(1, 3))
    module = ImageFolderDataModule(
        str(folder), predict=str(folder), batch_size=size, image_size=8, num_workers=0, **BLACK
    )
    good = [value for _, value in content if value is not None]
    found, bad = batches(module, "predict_dataloader")
    assert (found is REFUSED) == (not good)
    assert bad == len(content) - len(good)
    if good:
        assert [brightness(image) for batch in found for image in batch["image"]] == good
        found, _ = batches(module, "train_dataloader")
        assert (found is REFUSED) == (size > len(content))
        if found is not REFUSED:
            assert [len(batch["image"]) for batch in found] == [size] * (len(content) // size)
            assert {brightness(image) for batch in found for image in batch["image"]} <= set(good)


@st.composite
def samples(draw, number):
    """The members of one sample, and (brightness, caption, class), None if it is to be left out."""
    picture, value = draw(pictures())
    caption, label = f"number {number}", draw(st.integers(0, 2))
    members = {"png": picture, "txt": caption.encode(), "cls": str(label).encode()}
    wrong = draw(st.integers(0, 9))
    if wrong < 3:
        del members[("png", "txt", "cls")[wrong]]
    if wrong == 3:
        members["txt"] = b"\xff\xfe"
    if wrong == 4:
        members["cls"] = draw(st.sampled_from([b"", b"x", b"1.5", b"-1", b"3", b"99999999999999999999"]))
    if wrong == 5:
        members["other"] = b"?"
    return members, None if wrong < 5 or value is None else (value, caption, label)


@examples(150)
@given(data=st.data())
def test_shards(place, data):
    folder = place()
    expected, number = [], 0
    for shard in range(data.draw(st.integers(1, 3))):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for _ in range(data.draw(st.integers(0, 4))):
                members, sample = data.draw(samples(number))
                for suffix, content in members.items():
                    info = tarfile.TarInfo(f"{number:03d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                expected.append(sample)
                number += 1
    good, size = [sample for sample in expected if sample is not None], data.draw(st.integers(1, 3))
    shards = str(folder / "*.tar")
    module = WebDatasetDataModule(
        shards,
        shards,
        batch_size=size,
        image_size=8,
        num_workers=0,
        class_names=["a", "b", "c"],
        cache=data.draw(st.booleans()),
        **BLACK,
    )
    found, bad = batches(module, "val_dataloader")
    assert (found is REFUSED) == (not good)
    assert bad == len(expected) - len(good)
    if good:
        flat = [
            (brightness(image), text, label.item())
            for batch in found
            for image, text, label in zip(batch["image"], batch["text"], batch["label"], strict=True)
        ]
        assert flat == good
        found, _ = batches(module, "train_dataloader")
        captions = {text for batch in (found if found is not REFUSED else []) for text in batch["text"]}
        # Training needs no class.
        assert captions <= {f"number {k}" for k in range(number)}
        assert found is REFUSED or {len(batch["text"]) for batch in found} == {size}


@examples(100)
@given(data=st.data())
def test_damaged_shards(place, data):
    folder = place()
    with tarfile.open(folder / "0.tar", "w") as tar:
        for k in range(3):
            for suffix, content in {"png": encoded(100 * k), "txt": f"number {k}".encode()}.items():
                info = tarfile.TarInfo(f"{k}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    content = bytearray((folder / "0.tar").read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    for _ in range(data.draw(st.integers(0, 3)) if content else 0):
        content[data.draw(st.integers(0, min(len(content), 6000) - 1))] = data.draw(st.integers(0, 255))
    (folder / "0.tar").write_bytes(content)
    sizes = data.draw(
        st.sampled_from([None, None, '{"0.tar": 3}', "{", "[]", '{"0.tar": "x"}', '{"0.tar": -1}', "7"])
    )
    if sizes:
        (folder / "sizes.json").write_text(sizes)
    module = WebDatasetDataModule(
        str(folder / "0.tar"), str(folder / "0.tar"), batch_size=1, image_size=8, num_workers=0, **BLACK
    )
    for loader in ("val_dataloader", "train_dataloader"):
        found, _ = batches(module, loader)
        for batch in [] if found is REFUSED else found:
            assert batch["image"].shape == (1, 3, 8, 8)
            # A damaged byte may be one of the caption or of the picture.
            assert len(batch["text"]) == 1


KEYS = "batch_size image_size mean std crop flip seed num_workers train val test".split()


@examples(200)
@given(data=st.data())
def test_arguments(place, data):
    folder = place()
    (folder / "a.png").write_bytes(encoded(100))
    with tarfile.open(folder / "0.tar", "w") as tar:
        for name, content in {"a.png": encoded(100), "a.txt": b"a"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    usual = {"batch_size": 1, "image_size": 8, "num_workers": 0}
    if data.draw(st.booleans()):
        kind, source, extra = ImageFolderDataModule, str(folder), ["predict"]
    else:
        extra = "train_samples shuffle cache captions class_names".split()
        kind, source = WebDatasetDataModule, str(folder / "0.tar")
    given_ = data.draw(arguments([*KEYS, *extra], train=source, val=source, **usual))
    module = attempt(kind, **given_)
    if module is REFUSED or module.num_workers or module.batch_size > 4:
        return
    for loader in ("train_dataloader", "val_dataloader"):
        if given_.get("train_samples") in (2**70,) and loader == "train_dataloader":
            continue
        found, _ = batches(module, loader)
        for batch in [] if found is REFUSED else found:
            assert len(batch["image"]) >= 1
            assert batch["image"].isfinite().all()
