import itertools
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from cgspn.data import WebDatasetDataModule
from cgspn.data.bad_samples import BadSampleWarning
from cgspn.data.shards import count_samples, expand_shards

BLACK = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def numbers(loader):
    return [[int(text.split()[1]) for text in batch["text"]] for batch in loader]


def flat(loader):
    return [number for batch in numbers(loader) for number in batch]


def module(shards=None, **arguments):
    arguments = {
        "train": shards,
        "val": shards,
        "image_size": 16,
        "batch_size": 4,
        "num_workers": 0,
        **BLACK,
        **arguments,
    }
    return WebDatasetDataModule(**arguments)


@pytest.mark.parametrize("cache", [False, True], ids=["stream", "cache"])
@pytest.mark.parametrize("workers", [0, 2])
def test_validation_reads_everything_once(shards, cache, workers):
    seen = set()
    data = module(shards, cache=cache, num_workers=workers, batch_size=5, class_names=["a", "b", "c"])
    assert data.num_classes == 3
    for batch in data.val_dataloader():
        assert batch["image"].shape[1:] == (3, 16, 16)
        assert batch["image"].dtype == torch.float32
        assert batch["label"].dtype == torch.int64
        for image, text, label in zip(batch["image"], batch["text"], batch["label"], strict=True):
            number = int(text.split()[1])
            assert abs(image.mean().item() * 255 - 10 * number) < 2
            assert label.item() == number % 3
            seen.add(number)
    assert seen == set(range(24))


@pytest.mark.parametrize("cache", [False, True], ids=["stream", "cache"])
def test_order_is_a_function_of_seed_and_epoch(shards, cache):
    def epochs(**arguments):
        loader = module(shards, cache=cache, train_samples=24, **arguments).train_dataloader()
        loader.position = iter_positions()
        return [numbers(loader) for _ in range(2)]

    first = epochs()
    assert first == epochs()
    assert first[0] != first[1]
    assert first != epochs(seed=1)
    assert all(len(batch) == 4 for epoch in first for batch in epoch)
    assert [len(epoch) for epoch in first] == [6, 6]
    assert first[0] != [list(range(k, k + 4)) for k in range(0, 24, 4)]


def iter_positions():
    from cgspn.data.loader import Position

    epochs = iter(range(100))
    return lambda: Position(next(epochs), 0)


def test_cached_order_does_not_depend_on_workers(shards):
    orders = [
        numbers(module(shards, cache=True, num_workers=workers).train_dataloader()) for workers in (0, 2)
    ]
    assert orders[0] == orders[1]
    assert sorted(itertools.chain(*orders[0])) == list(range(24))


def test_one_pass_without_a_given_length(shards):
    for workers in (0, 2):
        loader = module(shards, num_workers=workers).train_dataloader()
        with pytest.raises(TypeError):
            len(loader)
        assert sorted(flat(loader)) == list(range(24))


def test_sizes_give_the_length(shards):
    folder = Path(shards).parent
    (folder / "sizes.json").write_text(json.dumps({f"part-{k:02d}.tar": 6 for k in range(4)}))
    assert count_samples(expand_shards(shards)) == 24
    loader = module(shards, num_workers=2).train_dataloader()
    assert len(loader) == 6
    assert len(numbers(loader)) == 6


@pytest.mark.parametrize("cache", [False, True], ids=["stream", "cache"])
def test_ranks_share_the_samples(shards, cache, monkeypatch):
    seen = []
    for rank in range(2):
        data = module(shards, cache=cache, train_samples=24)
        monkeypatch.setattr(type(data), "rank", rank)
        monkeypatch.setattr(type(data), "world_size", 2)
        loader = data.train_dataloader()
        assert len(numbers(loader)) == len(loader) == 3
        seen.append(set(flat(loader)))
        seen.append(set(flat(data.val_dataloader())))
    assert not seen[0] & seen[2]
    assert seen[1] | seen[3] == set(range(24))
    assert not seen[1] & seen[3]


def test_ranks_need_equal_numbers_of_batches(shards, monkeypatch):
    data = module(shards)
    monkeypatch.setattr(type(data), "world_size", 2)
    with pytest.raises(ValueError, match="train_samples"):
        data.train_dataloader()
    monkeypatch.setattr(type(data), "world_size", 5)
    with pytest.raises(ValueError, match="4 training shards are too few for 5"):
        module(shards, train_samples=24).train_dataloader()


@pytest.mark.parametrize("cache", [False, True], ids=["stream", "cache"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [1, 5])
@pytest.mark.parametrize("samples", [24, None], ids=["length", "pass"])
def test_goes_on_in_the_middle_of_an_epoch(shards, cache, workers, done, samples):
    def loader():
        return module(
            shards, cache=cache, num_workers=workers, train_samples=samples, batch_size=3, crop=0.5
        ).train_dataloader()

    whole = loader()
    whole.position = iter_positions()
    expected = list(whole)
    expected += list(whole)
    resumed = loader()
    resumed.load_state_dict({"epoch": 0, "batches": done, "order": resumed.order})
    found = list(resumed)
    resumed.position = iter_positions()
    resumed.position()
    found += list(resumed)
    assert len(found) == len(expected) - done
    for a, b in zip(found, expected[done:], strict=True):
        assert a["text"] == b["text"]
        assert torch.equal(a["image"], b["image"])


def test_other_order_is_said(shards):
    state = module(shards, train_samples=24).train_dataloader().state_dict()
    loader = module(shards, train_samples=24, batch_size=3).train_dataloader()
    with pytest.warns(UserWarning, match="batch_size is 3, was 4"):
        loader.load_state_dict(state)


@pytest.fixture
def bad_shards(tmp_path, jpeg, write_tar):
    good = {
        f"{k}.{suffix}": content
        for k in range(6)
        for suffix, content in (("jpg", jpeg(10 * k)), ("txt", f"number {k}".encode()))
    }
    write_tar(tmp_path / "a.tar", good)
    broken = {name.replace(".", "b."): content for name, content in good.items()}
    broken["0b.jpg"] = jpeg(0, (200, 200))[:300]
    broken["1b.jpg"] = b"no picture"
    del broken["2b.txt"]
    del broken["3b.jpg"]
    write_tar(tmp_path / "b.tar", broken)
    whole = (tmp_path / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        end = tar.getmembers()[6].offset_data + 100
    (tmp_path / "c.tar").write_bytes(whole[:end])
    (tmp_path / "d.tar").write_bytes(np.random.default_rng(0).bytes(3000))
    return str(tmp_path / "{a,b,c,d}.tar")


@pytest.mark.filterwarnings("ignore::cgspn.data.bad_samples.BadSampleWarning")
@pytest.mark.parametrize("cache", [False, True], ids=["stream", "cache"])
@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_counted(bad_shards, cache, workers):
    data = module(bad_shards, cache=cache, num_workers=workers)
    seen = flat(data.val_dataloader())
    # Six of a, two of b, three of c before it breaks off.
    assert sorted(seen) == sorted([*range(6), 4, 5, 0, 1, 2])
    # Four of b, one end of c, one d.
    assert data.bad_samples.count == 6
    batches = numbers(data.train_dataloader())
    assert batches
    assert all(len(batch) == 4 for batch in batches)


def test_first_bad_samples_are_named(bad_shards):
    data = module(bad_shards)
    with pytest.warns(BadSampleWarning) as warnings:
        list(data.val_dataloader())
    lines = [str(warning.message) for warning in warnings]
    assert len(lines) == 5, lines
    assert all("\n" not in line for line in lines)
    assert any("b.tar: 1b" in line for line in lines)
    assert any("no picture" in line for line in lines)
    assert any("no txt" in line for line in lines)


@pytest.mark.filterwarnings("ignore::cgspn.data.bad_samples.BadSampleWarning")
def test_nothing_readable_is_an_error(tmp_path, write_tar):
    write_tar(tmp_path / "x.tar", {"0.jpg": b"?", "0.txt": b"number 0"})
    with pytest.raises(ValueError, match=r"No sample can be read .*x\.tar"):
        module(str(tmp_path / "x.tar"), cache=True).train_dataloader()
    (tmp_path / "y.tar").write_bytes(b"?" * 600)
    with pytest.raises(ValueError, match=r"No sample can be read .*y\.tar"):
        list(module(str(tmp_path / "y.tar"), train_samples=8).train_dataloader())
    with pytest.raises(ValueError, match=r"No sample can be read .*x\.tar"):
        list(module(str(tmp_path / "x.tar"), train_samples=8).train_dataloader())


@pytest.mark.filterwarnings("ignore::cgspn.data.bad_samples.BadSampleWarning")
def test_one_readable_sample_among_many_is_found(tmp_path, jpeg, write_tar):
    content = {f"{k}.{suffix}": b"number 0" for k in range(30) for suffix in ("jpg", "txt")}
    write_tar(tmp_path / "x.tar", content | {"17.jpg": jpeg(0)})
    loader = module(str(tmp_path / "x.tar"), train_samples=8).train_dataloader()
    assert numbers(loader) == [[0] * 4] * 2


@pytest.mark.parametrize("pattern", ["no/such/part-{00..03}.tar", "no/such.tar", "no/such/*.tar"])
def test_missing_shards_are_named(pattern):
    with pytest.raises(FileNotFoundError, match="no/such"):
        module(pattern).train_dataloader()


def test_shards_through_a_pipe(shards):
    seen = flat(module(None, val=f"pipe:cat {shards}").val_dataloader())
    assert sorted(seen) == list(range(24))


def test_patterns(shards, tmp_path):
    names = [str(tmp_path / f"part-{k:02d}.tar") for k in range(4)]
    assert expand_shards(shards) == names
    assert expand_shards(str(tmp_path / "part-*.tar")) == names
    assert expand_shards(names[2:]) == names[2:]
    assert expand_shards("::".join(names[:2])) == names[:2]
    assert expand_shards("https://a.b/{0..1}.tar") == ["https://a.b/0.tar", "https://a.b/1.tar"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"batch_size": 0}, "batch_size"), ({"num_workers": -1}, "num_workers"), ({"shuffle": 0}, "shuffle"),
     ({"train_samples": 2}, "train_samples"), ({"image_size": -3}, "size")],
)  # fmt: skip
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        module(**arguments)


def test_pictures_alone(tmp_path, jpeg, write_tar):
    write_tar(tmp_path / "x.tar", {f"{k}.jpg": jpeg(k) for k in range(4)})
    data = module(str(tmp_path / "x.tar"), captions=False)
    assert [set(batch) for batch in data.train_dataloader()] == [{"image"}]


def test_missing_split_is_named(shards):
    with pytest.raises(ValueError, match="no 'train' shards; given: val, test"):
        module(None, val=shards).train_dataloader()
    assert module(None, train=shards).val_dataloader() == []


def test_missing_validation_shards_are_named_before_training(shards):
    with pytest.raises(FileNotFoundError, match="No shard 'nowhere'"):
        module(None, train=shards, val="nowhere").setup("fit")
    module(None, train=shards, val="nowhere").setup("test")
    module(None, train=shards).setup("fit")


def test_too_few_samples_for_a_batch(shards):
    with pytest.raises(ValueError, match="24 training samples"):
        module(shards, cache=True, batch_size=25).train_dataloader()


def test_without_webdataset(monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"^WebDatasetDataModule needs webdataset: pip install 'cgspn\[data\]'\.$"
    ):
        module()


def test_drawing_scenes_needs_no_torch():
    code = "import sys; import cgspn.data.scenes.command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_real_shards(real_data):
    data = module(
        str(real_data / "cifar10/train-{0000..0009}.tar.gz"), val=str(real_data / "cifar10/test-0000.tar.gz"),
        image_size=32,
        batch_size=100,
        train_samples=50_000, class_names=["airplane"] * 10,
    )  # fmt: skip
    loader = data.train_dataloader()
    assert len(loader) == 500
    batch = next(iter(loader))
    assert batch["image"].shape == (100, 3, 32, 32)
    assert all(text.startswith("a photo of a ") for text in batch["text"])
    labels = torch.cat([batch["label"] for batch in data.val_dataloader()])
    assert labels.bincount().tolist() == [500] * 10
    assert data.num_classes == 10
    assert data.bad_samples.count == 0
    natural = module(str(real_data / "imagenet_samples/train-0000.tar"), image_size=[224, 320])
    assert next(iter(natural.val_dataloader()))["image"].shape == (4, 3, 224, 320)
