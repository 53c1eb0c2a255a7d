import pytest
import torch

from cgspn.data import ImageFolderDataModule
from cgspn.data.bad_samples import BadSampleWarning
from cgspn.data.folder import find_images


@pytest.fixture
def pictures(tmp_path, jpeg):
    for k in range(10):
        folder = tmp_path / ("deep/er" if k % 2 else ".")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k}.{'JPG' if k % 3 else 'jpeg'}").write_bytes(jpeg(20 * k, (20, 30)))
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden.jpg").write_bytes(b"")
    return tmp_path


def module(folder, **arguments):
    black = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return ImageFolderDataModule(
        **{
            "train": folder,
            "predict": folder,
            "image_size": 8,
            "batch_size": 3,
            "num_workers": 0,
            **black,
            **arguments,
        }
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_every_picture_once(pictures, workers):
    batches = list(module(str(pictures), num_workers=workers).predict_dataloader())
    assert [len(batch["path"]) for batch in batches] == [3, 3, 3, 1]
    paths = [path for batch in batches for path in batch["path"]]
    assert paths == [str(path) for path in find_images(pictures)]
    for batch in batches:
        assert set(batch) == {"image", "path"}
        for image, path in zip(batch["image"], batch["path"], strict=True):
            assert abs(image.mean().item() * 255 - 20 * int(path.split("/")[-1][0])) < 2


def test_training_is_shuffled_by_seed(pictures):
    def order(**arguments):
        return [
            path for batch in module(str(pictures), **arguments).train_dataloader() for path in batch["path"]
        ]

    assert len(order()) == 9
    assert order() == order(num_workers=2)
    assert order() != order(seed=1)


def test_augmentation_does_not_depend_on_workers(pictures):
    images = [
        torch.cat([b["image"] for b in module(str(pictures), crop=0.2, num_workers=n).train_dataloader()])
        for n in (0, 2)
    ]
    assert torch.equal(*images)


@pytest.mark.filterwarnings("ignore::cgspn.data.bad_samples.BadSampleWarning")
def test_bad_pictures_are_left_out(pictures):
    (pictures / "3x.jpg").write_bytes(b"no picture")
    whole = (pictures / "0.jpeg").read_bytes()
    (pictures / "4x.jpg").write_bytes(whole[: len(whole) // 3])
    data = module(str(pictures))
    paths = [path for batch in data.predict_dataloader() for path in batch["path"]]
    assert len(paths) == 10
    assert data.bad_samples.count == 2
    batches = list(data.train_dataloader())
    assert [len(batch["path"]) for batch in batches] == [3, 3, 3, 3]


def test_bad_picture_is_named(pictures):
    (pictures / "3x.jpg").write_bytes(b"no picture")
    with pytest.warns(BadSampleWarning, match=r"3x\.jpg"):
        list(module(str(pictures)).predict_dataloader())


@pytest.mark.filterwarnings("ignore::cgspn.data.bad_samples.BadSampleWarning")
def test_only_bad_pictures(tmp_path):
    (tmp_path / "a.png").write_bytes(b"?")
    data = module(str(tmp_path), batch_size=1)
    with pytest.raises(ValueError, match="None of the 1 samples can be read"):
        list(data.predict_dataloader())
    with pytest.raises(ValueError, match="None of the training pictures"):
        list(data.train_dataloader())


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no/such/folder"):
        module("no/such/folder").train_dataloader()
    with pytest.raises(ValueError, match=f"No picture in '{tmp_path}'"):
        module(str(tmp_path)).train_dataloader()
    with pytest.raises(ValueError, match="no folder 'test'; given: train, predict"):
        module(str(tmp_path)).test_dataloader()


def test_a_single_picture(pictures):
    batch = next(iter(module(str(pictures / "0.jpeg")).predict_dataloader()))
    assert batch["image"].shape == (1, 3, 8, 8)
