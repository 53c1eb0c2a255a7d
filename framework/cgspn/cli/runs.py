"""Run folders ``runs/<name>/<n>``."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from cgspn.cli.errors import UsageError


@dataclasses.dataclass
class RunConfig:
    """Where a run is kept.

    Args:
        name: Folder below ``root``, slashes allowed; by default that of the config file, else of the class.
        root: Folder of all runs.
    """

    name: str | None = None
    root: str = "runs"

    def __post_init__(self) -> None:
        if not self.root:
            raise UsageError("run.root is empty; it must be a folder.")
        path = Path(self.name or ".")
        if path.is_absolute() or ".." in path.parts or (self.name is not None and not path.parts):
            raise UsageError(f"run.name={self.name!r} must be a folder name below run.root={self.root!r}.")


def new_run_folder(run: RunConfig) -> Path:
    """Makes ``<root>/<name>/<n>`` with the next free number and returns it.

    On other ranks than 0 nothing is made; they learn the folder from rank 0 when the trainer starts.
    """
    parent = Path(run.root) / str(run.name)
    if getattr(rank_zero_only, "rank", 0) != 0:
        return parent
    parent.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(p.name) for p in parent.iterdir() if p.name.isdigit()), default=-1)
    while True:
        try:
            (parent / str(number)).mkdir()
            return parent / str(number)
        except FileExistsError:
            number += 1


def mark_latest(folder: Path, command: str) -> None:
    """Lets the link ``latest`` beside a run folder point to it.

    Commands other than ``fit`` have their own, ``latest-<command>``, and a ``fit`` that fails before its
    first checkpoint changes nothing, so that ``latest`` always leads to checkpoints. Where the file system
    has no symbolic links there is none.
    """
    link = folder.with_name("latest" if command == "fit" else f"latest-{command}")
    temporary = link.with_name(f".{link.name}-{os.getpid()}")
    try:
        temporary.symlink_to(folder.name)
        temporary.replace(link)
    except OSError:
        temporary.unlink(missing_ok=True)
