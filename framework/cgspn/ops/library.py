"""Loading of the native library and the answer to "what is active, and why not?"."""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from cgspn.ops import latent_registration, registration, token_linear_registration

FORCE_REFERENCE = "CGSPN_REFERENCE"
LIBRARY_DIR = "CGSPN_LIBRARY_DIR"
REGISTRATIONS = (registration, latent_registration, token_linear_registration)


@dataclass(frozen=True)
class Status:
    """Whether the native kernels of one device are active.

    Attributes:
        device: ``cpu`` or ``cuda``.
        path: The loaded library, or None.
        reason: Why it is not active; empty if it is.
        forced: Whether the reference was asked for.
    """

    device: str
    path: Path | None
    reason: str = ""
    forced: bool = False

    @property
    def active(self) -> bool:
        """Whether operators on this device run native kernels."""
        return self.path is not None


def active(device: torch.device) -> bool:
    """Whether the native operators run on ``device``; else the reference does.

    Raises:
        RuntimeError: For a CUDA device without kernels, unless the reference was asked for: it is so slow
            that running it unasked would look as if something hung.
    """
    if device.type == "meta":
        return STATUS["cpu"].active
    if device.type not in STATUS:
        return False
    status = STATUS[device.type]
    if status.device == "cuda" and not (status.active or status.forced):
        raise RuntimeError(
            f"cgspn has no CUDA kernels for a tensor on {device}: {status.reason}; "
            f"{FORCE_REFERENCE}=1 runs the plain PyTorch reference, which is slow."
        )
    return status.active


def cmake_dir() -> Path:
    """Folder to give CMake as ``cgspn_DIR``, so that C++ programs without torch find the kernels.

    Raises:
        RuntimeError: If the library was not built.
    """
    path = STATUS["cpu"].path
    if path is None:
        raise RuntimeError(f"there is no native library to link: {STATUS['cpu'].reason}.")
    return path.parent / "cmake"


def _load_all() -> dict[str, Status]:
    cpu = _current(_load("cpu", "_C"), lambda name: hasattr(torch.ops.cgspn, name))
    if cpu.active:
        for module in REGISTRATIONS:
            module.register()
    if torch.version.cuda is None:
        cuda = Status("cuda", None, f"torch {torch.__version__} is a CPU build")
    elif not cpu.active and not cpu.forced:
        cuda = Status("cuda", None, f"it needs the CPU library: {cpu.reason}")
    else:
        cuda = _current(_load("cuda", "_C_cuda"), _has_cuda_kernel)
    return {"cpu": cpu, "cuda": cuda}


def _load(device: str, name: str) -> Status:
    if os.environ.get(FORCE_REFERENCE, "0") not in ("", "0"):
        return Status(device, None, f"{FORCE_REFERENCE} is set", forced=True)
    path = _find(name)
    if path is None:
        return Status(device, None, _build_reason(device))
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return Status(device, None, f"{path} does not load: {str(error).splitlines()[0]}")
    return Status(device, path)


def _current(status: Status, has: Callable[[str], bool]) -> Status:
    """Leaves a library alone that lacks an operator, as after an update of the sources without a build."""
    names = [name for module in REGISTRATIONS for name in module.NAMES] if status.active else []
    if missing := [name for name in names if not has(name)]:
        reason = f"{status.path} was built from older sources ({missing[0]} is missing); build again"
        return Status(status.device, None, reason)
    return status


def _has_cuda_kernel(name: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"cgspn::{name}", "CUDA")


def _find(name: str) -> Path | None:
    """The library file: in ``CGSPN_LIBRARY_DIR`` if that is set, else installed with the package."""
    if folder := os.environ.get(LIBRARY_DIR):
        path = Path(folder) / f"{name}.so"
        return path if path.is_file() else None
    spec = importlib.util.find_spec(f"cgspn.{name}")
    return Path(spec.origin) if spec is not None and spec.origin else None


def _build_reason(device: str) -> str:
    """What the build recorded about a library that is not there."""
    if folder := os.environ.get(LIBRARY_DIR):
        return f"{LIBRARY_DIR}={folder} holds no such library"
    try:
        build = importlib.import_module("cgspn._build")
    except ModuleNotFoundError:
        return "the package was not installed with pip, so nothing was built"
    return str(getattr(build, device.upper()))


def _warn(cpu: Status) -> None:
    if not cpu.active:
        warnings.warn(
            f"cgspn runs the plain PyTorch reference on cpu, which is slow: {cpu.reason}.",
            RuntimeWarning,
            stacklevel=2,
        )


# Loaded on import, so that compiled code finds the operators and the answer is a constant.
STATUS = _load_all()
_warn(STATUS["cpu"])
