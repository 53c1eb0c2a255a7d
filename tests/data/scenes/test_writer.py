import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from cgspn.cli import main
from cgspn.data.scenes import draw_scene
from cgspn.data.scenes.writer import VALIDATION_START, write_ade20k, write_shards


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_ade20k_folder(tmp_path):
    out = tmp_path / "ade"
    assert write_ade20k(out, 3, 2, (40, 56), seed=4, num_workers=1)
    images = sorted(path.name for path in (out / "images/training").iterdir())
    assert images == [f"ADE_train_{k:08d}.jpg" for k in (1, 2, 3)]
    assert len(list((out / "images/validation").iterdir())) == 2
    for split, first in (("training", 0), ("validation", VALIDATION_START)):
        for offset, path in enumerate(sorted((out / "annotations" / split).iterdir())):
            scene = draw_scene(4, first + offset, 40, 56)
            labels = Image.open(path)
            assert labels.mode == "L"
            assert np.array_equal(np.asarray(labels), scene.labels)
            image = np.asarray(Image.open(out / "images" / split / f"{path.stem}.jpg"), float)
            assert np.abs(image - scene.image).mean() < 6


def test_shards(tmp_path):
    out = tmp_path / "shards"
    write_shards(out, 5, 1, 32, seed=2, shard_size=3, num_workers=1)
    assert json.loads((out / "sizes.json").read_text()) == {
        "train-0000.tar": 3,
        "train-0001.tar": 2,
        "val-0000.tar": 1,
    }
    with tarfile.open(out / "train-0001.tar") as tar:
        names = tar.getnames()
        assert names == [f"train{k:08d}.{suffix}" for k in (3, 4) for suffix in ("jpg", "txt", "json")]
        scene = draw_scene(2, 3, 32)
        assert tar.extractfile(names[1]).read().decode() == scene.caption
        record = json.loads(tar.extractfile(names[2]).read())
        assert record["caption"] == scene.caption
        assert (record["width"], record["height"], record["index"]) == (32, 32, 3)
        assert Image.open(io.BytesIO(tar.extractfile(names[0]).read())).size == (32, 32)


def test_workers_do_not_change_anything(tmp_path):
    write_shards(tmp_path / "one", 20, 4, 16, num_workers=1)
    write_shards(tmp_path / "two", 20, 4, 16, num_workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_complete_folder_is_used_again(tmp_path):
    out = tmp_path / "ade"
    assert write_ade20k(out, 2, 1, 16, num_workers=1)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert not write_ade20k(out, 2, 1, 16, num_workers=1)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(ValueError, match=r"other scenes \(num 2 instead of 3\)"):
        write_ade20k(out, 3, 1, 16, num_workers=1)
    with pytest.raises(ValueError, match="layout"):
        write_shards(out, 2, 1, 16, num_workers=1)


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no scenes"):
        write_ade20k(tmp_path, 1, 1, 16)
    assert files(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize("workers", [1, 2])
def test_interrupted_write_leaves_nothing(tmp_path, workers):
    def stop(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_ade20k(tmp_path / "ade", 8, 1, 16, num_workers=workers, advance=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num": 0, "num_val": 0}, "Nothing to draw"),
        ({"size": 4}, "8 x 8"),
        ({"seed": -1}, "seed"),
        ({"shard_size": 0}, "shard_size"),
        ({"num_workers": 0}, "num_workers"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_shards(tmp_path / "out", **{"num": 2, "num_val": 1, **arguments})
    assert list(tmp_path.iterdir()) == []


def test_command(tmp_path, capsys):
    command = [
        "scenes",
        str(tmp_path / "s"),
        "--num",
        "3",
        "--num-val",
        "2",
        "--size",
        "16",
        "24",
        "--num-workers",
        "1",
    ]
    assert main(command) == 0
    assert "3 training and 2 validation scenes, 16 x 24" in capsys.readouterr().out
    assert main(command) == 0
    assert "already there" in capsys.readouterr().out
    assert main([*command, "--seed", "9"]) == 2
    assert "seed 0 instead of 9" in capsys.readouterr().err
