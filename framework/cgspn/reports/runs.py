"""Run folders, read as far as they go: what is missing or damaged is left out, not an error."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from cgspn.segmentation.results import RESULTS, Examples, read_examples

Curve = list[tuple[int, float]]


@dataclasses.dataclass
class Run:
    """One run folder.

    Attributes:
        folder: Where it is.
        config: Contents of ``config.yaml``.
        metrics: Contents of ``metrics.json``: the last value of each metric.
        curves: (step, value) pairs of each column of ``metrics.csv``.
        segmentation: Figures of the last segmentation evaluation.
        examples: Pictures of it.
        notes: What could not be read.
    """

    folder: Path
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    curves: dict[str, Curve] = dataclasses.field(default_factory=dict)
    segmentation: dict[str, Any] = dataclasses.field(default_factory=dict)
    examples: Examples | None = None
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def kind(self) -> str:
        """Name of the LightningModule, or an empty string."""
        return str(self.model.get("class_path", "")).rpartition(".")[2]

    @property
    def model(self) -> Mapping[str, Any]:
        """The ``model`` section of the config."""
        section = self.config.get("model")
        return section if isinstance(section, Mapping) else {}

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The module's arguments."""
        section = self.model.get("init_args")
        return section if isinstance(section, Mapping) else {}

    @property
    def name(self) -> str:
        """The name the run was given and its number, such as ``demo/stage1/0``."""
        section = self.config.get("run")
        given = section.get("name") if isinstance(section, Mapping) else None
        return f"{given}/{self.folder.name}" if given else f"{self.folder.parent.name}/{self.folder.name}"

    def init_from(self) -> Path | None:
        """Folder of the run whose weights this one started from."""
        return self._folder_of(self.arguments.get("init_from"), "path")

    def sources(self) -> list[Path]:
        """Folders of the runs that this one needed: where its weights and its teacher come from."""
        found = [self.init_from(), self._folder_of(self.arguments.get("teacher"), "weights")]
        return [folder for folder in found if folder is not None]

    def _folder_of(self, node: Any, key: str) -> Path | None:
        path = node.get(key) if isinstance(node, Mapping) else None
        if not isinstance(path, str):
            return None
        # A relative path counts from where the command was run: the folder above runs/.
        for base in (Path(), *self.folder.resolve().parents):
            for folder in (base / path).parents[:2]:
                if (folder / "config.yaml").is_file():
                    return folder.resolve()
        return None


def read_run(path: str | Path) -> Run:
    """Reads a run folder.

    Raises:
        ValueError: If there is no such folder or it holds nothing that a run leaves.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"There is no run folder {folder}.")
    run = Run(folder.resolve())
    readers = {
        "config.yaml": lambda file: setattr(run, "config", mapping(yaml.safe_load(file.read_text()))),
        "metrics.json": lambda file: setattr(run, "metrics", mapping(json.loads(file.read_text()))),
        "metrics.csv": lambda file: setattr(run, "curves", read_curves(file)),
        RESULTS: lambda file: setattr(run, "segmentation", mapping(json.loads(file.read_text()))),
    }
    found = [name for name in readers if (folder / name).is_file()]
    if not found:
        raise ValueError(f"{folder} is not a run folder: it holds none of {', '.join(readers)}.")
    for name in found:
        try:
            readers[name](folder / name)
        except (ValueError, OSError, yaml.YAMLError) as error:
            run.notes.append(f"{folder / name} could not be read: {' '.join(str(error).split())}")
    try:
        run.examples = read_examples(folder)
    except FileNotFoundError:
        pass
    except Exception as error:  # A damaged archive raises half a dozen kinds.
        run.notes.append(f"The pictures in {folder} could not be read: {error}")
    return run


def mapping(value: Any) -> dict[str, Any]:
    """The value itself.

    Raises:
        ValueError: If it is no mapping.
    """
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping, got {type(value).__name__}")
    return value


def read_curves(file: Path) -> dict[str, Curve]:
    """Columns of Lightning's CSV log as (step, value) pairs; what is no number is skipped."""
    curves: dict[str, Curve] = {}
    with file.open(newline="") as lines:
        for row in csv.DictReader(lines):
            step = number(row.get("step"))
            if step is None:
                continue
            for name, cell in row.items():
                value = number(cell)
                if name not in ("step", "epoch", None) and value is not None:
                    curves.setdefault(name, []).append((int(step), value))
    return curves


def number(cell: Any) -> float | None:
    """The number in a cell, or None."""
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


def with_sources(runs: list[Run]) -> Iterator[Run]:
    """The runs and, before each, the runs it came from, each once."""
    seen: set[Path] = set()

    def visit(run: Run) -> Iterator[Run]:
        if run.folder in seen:
            return
        seen.add(run.folder)
        for folder in run.sources():
            if folder not in seen:
                yield from visit(read_run(folder))
        yield run

    for run in runs:
        yield from visit(run)
