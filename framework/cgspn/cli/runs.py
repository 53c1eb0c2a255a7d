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


def start_run(run: RunConfig, latest: str) -> Path:
    """Makes ``<root>/<name>/<n>`` with the next free number and returns it.

    Args:
        run: Its name and root.
        latest: The command. ``fit`` moves the link ``latest`` to the new folder, another command
            ``latest-<command>``, so that ``latest`` always leads to a run with checkpoints.

    On other ranks than 0 nothing is made; they learn the folder from rank 0 when the trainer starts.

    Raises:
        UsageError: If the name leads out of ``root``.
    """
    name = Path(run.name or "run")
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise UsageError(f"run.name={run.name!r} must be a folder name below run.root={run.root!r}.")
    parent = Path(run.root) / name
    if getattr(rank_zero_only, "rank", 0) != 0:
        return parent
    parent.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(p.name) for p in parent.iterdir() if p.name.isdigit()), default=-1)
    while True:
        folder = parent / str(number)
        try:
            folder.mkdir()
            break
        except FileExistsError:
            number += 1
    point(parent / ("latest" if latest == "fit" else f"latest-{latest}"), folder)
    return folder


def point(link: Path, folder: Path) -> None:
    """Lets a relative symbolic link point to a folder beside it, atomically; not all file systems can."""
    temporary = link.with_name(f".{link.name}-{os.getpid()}")
    try:
        temporary.symlink_to(folder.name)
        temporary.replace(link)
    except OSError:
        temporary.unlink(missing_ok=True)
