"""Files of features: ``summary`` (N, C), ``pictures`` (their N names) and ``features/<name>`` (H, W, C)."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np


class FeatureWriter:
    """Collects what encoders make of pictures; the file appears when the ``with`` block ends.

    Where the block fails there is no file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path.with_name(f".{path.name}-{os.getpid()}")
        self.names: list[str] = []
        self.summaries: list[np.ndarray] = []
        self.shapes: set[tuple[int, ...]] = set()

    @property
    def contents(self) -> str:
        """Shapes of what the file holds, in words."""
        summary = f"summary ({len(self.summaries)}, {len(self.summaries[0])})"
        if not self.shapes:
            return summary
        first, *others = sorted(self.shapes)
        return f"{summary}, features {first}" + (f" to {others[-1]}" if others else "")

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.finish()
                self.partial.replace(self.path)
        finally:
            self.partial.unlink(missing_ok=True)

    def add(self, name: str, summary: np.ndarray, features: np.ndarray | None) -> None:
        """Takes what belongs to one picture: (C,) and (H, W, C)."""
        self.names.append(name)
        self.summaries.append(summary)
        if features is not None:
            self.shapes.add(features.shape)
            self.add_features(f"features/{name}", features)

    def add_features(self, key: str, features: np.ndarray) -> None:
        """Takes dense features."""
        raise NotImplementedError

    def finish(self) -> None:
        """Completes ``partial``."""
        raise NotImplementedError


class NpzWriter(FeatureWriter):
    """Writes each picture's features at once: memory does not grow with their number."""

    def __enter__(self) -> Self:
        super().__enter__()
        self.archive = zipfile.ZipFile(self.partial, "w")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.archive.close()
        super().__exit__(kind, error, trace)

    def add_features(self, key: str, features: np.ndarray) -> None:
        """Writes an array as numpy's ``savez`` would."""
        with self.archive.open(f"{key}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, features)

    def finish(self) -> None:
        """Adds summaries and names."""
        self.add_features("summary", np.stack(self.summaries))
        self.add_features("pictures", np.array(self.names))
        self.archive.close()


class SafetensorsWriter(FeatureWriter):
    """Holds everything in memory until the end; names are JSON in the metadata."""

    def __enter__(self) -> Self:
        self.tensors: dict[str, np.ndarray] = {}
        return super().__enter__()

    def add_features(self, key: str, features: np.ndarray) -> None:
        """Keeps an array."""
        self.tensors[key] = np.ascontiguousarray(features)

    def finish(self) -> None:
        """Writes everything."""
        import torch

        from cgspn.backbones.weights import save_tensors

        arrays = {"summary": np.stack(self.summaries), **self.tensors}
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        save_tensors(self.partial, tensors, {"pictures": json.dumps(self.names)})


WRITERS: dict[str, type[FeatureWriter]] = {".npz": NpzWriter, ".safetensors": SafetensorsWriter}
