"""Writing scenes to disk, as an ADE20K folder or as webdataset shards, whole or not at all."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cgspn.data.scenes.scene import draw_scene

# Validation scenes are numbered from here, so that neither split grows into the other.
VALIDATION_START = 1_000_000_000
MANIFEST = "scenes.json"
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Plan:
    """What is to be written.

    Attributes:
        layout: ``ade20k`` or ``shards``.
        num: Training scenes.
        num_val: Validation scenes.
        height: Rows of a picture.
        width: Columns of a picture.
        seed: Series of scenes.
        shard_size: Samples in a shard; 0 for a folder.
    """

    layout: str
    num: int
    num_val: int
    height: int
    width: int
    seed: int
    shard_size: int = 0

    def __post_init__(self) -> None:
        if self.num < 0 or self.num_val < 0 or self.num + self.num_val == 0:
            raise ValueError(f"Nothing to draw: num is {self.num} and num_val is {self.num_val}.")
        if self.layout == "shards" and self.shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, got {self.shard_size}.")
        draw_scene(self.seed, 0, self.height, self.width)

    def splits(self) -> list[tuple[str, int, int]]:
        """Name, first scene and number of scenes of each split that has any."""
        splits = [("train", 0, self.num), ("val", VALIDATION_START, self.num_val)]
        return [split for split in splits if split[2]]


@dataclass(frozen=True)
class Encoded:
    """A scene as files: JPEG picture, PNG label map, caption."""

    jpg: bytes
    png: bytes
    caption: str


def write_ade20k(
    out: str | Path,
    num: int,
    num_val: int,
    size: int | tuple[int, int] = 64,
    seed: int = 0,
    num_workers: int | None = None,
    advance: Advance | None = None,
) -> bool:
    """Writes scenes as an ADE20K folder: ``images/`` and ``annotations/``, ``training/`` and ``validation/``.

    Args:
        out: Folder to make.
        num: Training scenes.
        num_val: Validation scenes.
        size: Side of a square picture, or (height, width).
        seed: Series of scenes.
        num_workers: Processes that draw; None means one for each CPU. It does not change what is drawn.
        advance: Called with a number of scenes whenever so many more are done.

    Returns:
        False if ``out`` holds these very scenes already and nothing was drawn.

    Raises:
        ValueError: If a size or number is not valid, or ``out`` holds something else.
    """
    height, width = _size(size)
    plan = Plan("ade20k", num, num_val, height, width, seed)
    return _write(Path(out), plan, _fill_ade20k, num_workers, advance)


def write_shards(
    out: str | Path,
    num: int,
    num_val: int,
    size: int | tuple[int, int] = 64,
    seed: int = 0,
    shard_size: int = 500,
    num_workers: int | None = None,
    advance: Advance | None = None,
) -> bool:
    """Writes scenes as webdataset shards in the DataComp layout: ``train-0000.tar``, ``val-0000.tar``, ...

    Each sample has ``jpg``, ``txt`` (the caption) and ``json``; ``sizes.json`` counts the samples of shards.

    Args:
        out: Folder to make.
        num: Training scenes.
        num_val: Validation scenes.
        size: Side of a square picture, or (height, width).
        seed: Series of scenes.
        shard_size: Samples in a shard; the last one may have fewer.
        num_workers: Processes that draw; None means one for each CPU. It does not change what is drawn.
        advance: Called with a number of scenes whenever so many more are done.

    Returns:
        False if ``out`` holds these very scenes already and nothing was drawn.

    Raises:
        ValueError: If a size or number is not valid, or ``out`` holds something else.
    """
    height, width = _size(size)
    plan = Plan("shards", num, num_val, height, width, seed, shard_size)
    return _write(Path(out), plan, _fill_shards, num_workers, advance)


def _size(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _fill_ade20k(folder: Path, plan: Plan, scenes: Callable[[int, int], Iterator[Encoded]]) -> None:
    for split, start, count in plan.splits():
        name = {"train": "training", "val": "validation"}[split]
        images, annotations = folder / "images" / name, folder / "annotations" / name
        images.mkdir(parents=True)
        annotations.mkdir(parents=True)
        for number, scene in enumerate(scenes(start, count), 1):
            stem = f"ADE_{split}_{number:08d}"
            (images / f"{stem}.jpg").write_bytes(scene.jpg)
            (annotations / f"{stem}.png").write_bytes(scene.png)


def _fill_shards(folder: Path, plan: Plan, scenes: Callable[[int, int], Iterator[Encoded]]) -> None:
    sizes = {}
    for split, start, count in plan.splits():
        drawn = scenes(start, count)
        for shard, first in enumerate(range(0, count, plan.shard_size)):
            last = min(first + plan.shard_size, count)
            name = f"{split}-{shard:04d}.tar"
            with tarfile.open(folder / name, "w") as tar:
                for number in range(first, last):
                    scene, key = next(drawn), f"{split}{number:08d}"
                    record = {
                        "uid": key,
                        "caption": scene.caption,
                        "width": plan.width,
                        "height": plan.height,
                    }
                    record |= {"seed": plan.seed, "index": start + number}
                    text = {"txt": scene.caption.encode(), "json": json.dumps(record).encode()}
                    for suffix, content in {"jpg": scene.jpg, **text}.items():
                        member = tarfile.TarInfo(f"{key}.{suffix}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
            sizes[name] = last - first
    (folder / "sizes.json").write_text(json.dumps(sizes, indent=1))


def _write(
    out: Path,
    plan: Plan,
    fill: Callable[[Path, Plan, Callable[[int, int], Iterator[Encoded]]], None],
    num_workers: int | None,
    advance: Advance | None,
) -> bool:
    manifest = {**asdict(plan), "drawing": _fingerprint()}
    if _already_there(out, manifest):
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    # Built beside its place and moved there when complete, so that a folder is whole or absent.
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        folder.chmod(0o755)
        with _drawing(plan, num_workers, advance) as scenes:
            fill(folder, plan, scenes)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
        os.replace(folder, out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return True


def _already_there(out: Path, manifest: dict[str, object]) -> bool:
    """Whether ``out`` holds what the manifest says; an error if it holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / MANIFEST).is_file():
        raise ValueError(f"{out} exists and holds no scenes; name another folder.")
    try:
        found = json.loads((out / MANIFEST).read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{out / MANIFEST} is damaged; delete {out} or name another folder.")
    if found == manifest:
        return True
    keys = [key for key in manifest if found.get(key) != manifest[key]]
    differences = ", ".join(f"{key} {found.get(key)} instead of {manifest[key]}" for key in keys)
    raise ValueError(f"{out} holds other scenes ({differences}); delete it or name another folder.")


def _fingerprint() -> str:
    """Digest of a few scenes: changes when the way of drawing does."""
    digest = hashlib.sha256()
    for index in range(4):
        scene = draw_scene(0, index, 32)
        digest.update(scene.image.tobytes() + scene.labels.tobytes() + scene.caption.encode())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _drawing(
    plan: Plan, num_workers: int | None, advance: Advance | None
) -> Iterator[Callable[[int, int], Iterator[Encoded]]]:
    """Gives a function that draws scenes in order, in several processes."""
    workers = (os.cpu_count() or 1) if num_workers is None else num_workers
    if workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {workers}.")
    encode = functools.partial(_encode, plan.seed, plan.height, plan.width)
    report = advance or (lambda count: None)

    def drawn(mapped: Iterator[Encoded]) -> Iterator[Encoded]:
        for scene in mapped:
            report(1)
            yield scene

    if workers == 1:
        yield lambda start, count: drawn(map(encode, range(start, start + count)))
        return
    # Fork where it exists: the workers only need NumPy and Pillow, and start at once.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    # Ctrl-C reaches every process of a terminal; this one ends the others.
    ignore = (signal.SIGINT, signal.SIG_IGN)
    with multiprocessing.get_context(method).Pool(workers, signal.signal, ignore) as pool:
        yield lambda start, count: drawn(pool.imap(encode, range(start, start + count), chunksize=8))


def _encode(seed: int, height: int, width: int, index: int) -> Encoded:
    scene = draw_scene(seed, index, height, width)
    return Encoded(
        _file(scene.image, "JPEG", quality=92, subsampling=0), _file(scene.labels, "PNG"), scene.caption
    )


def _file(pixels: np.ndarray, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()
