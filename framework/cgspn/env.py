"""``python -m cgspn.env``: versions, what native code is active and why not, fit for a bug report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path

import torch

import cgspn
from cgspn.ops import library, token_linear
from cgspn.ops.latent_propagation import latent_backend_report

REQUIRED = (
    "lightning",
    "jsonargparse",
    "torchmetrics",
    "numpy",
    "pillow",
    "safetensors",
)
# Of mmengine, mmsegmentation and mmcv the maintained packages and the originals go by different names.
OPTIONAL = (
    "onedl-mmengine",
    "onedl-mmsegmentation",
    "onedl-mmcv",
    "mmengine",
    "mmsegmentation",
    "mmcv",
    "mmcv-lite",
    "webdataset",
    "timm",
    "transformers",
    "open_clip_torch",
    "matplotlib",
)


def report() -> str:
    """The report as text, one fact a line."""
    lines = [
        ("cgspn", f"{cgspn.__version__} ({Path(cgspn.__file__).parent})"),
        ("python", f"{platform.python_version()} ({sys.executable})"),
        ("platform", platform.platform()),
        ("cpu", f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"),
        ("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}"),
    ]
    lines += [(f"gpu {i}", _gpu(i)) for i in range(torch.cuda.device_count())]
    for status in library.STATUS.values():
        state = f"active ({status.path})" if status.active else f"not active: {status.reason}"
        lines.append((f"native {status.device} kernels", state))
    lines.append(("latent propagation", latent_backend_report()))
    lines.append(("token-wise linear", token_linear.CHOICE.report(token_linear.CONDITIONS)))
    lines += [(name, _version(name) or "not installed") for name in REQUIRED]
    lines += [(name, version) for name in OPTIONAL if (version := _version(name))]
    lines += sorted(
        (f"plugin {point.name}", f"{point.value} ({point.dist.name} {point.dist.version})")
        for point in importlib.metadata.entry_points(group="cgspn.plugins")
        if point.dist
    )
    lines += sorted((name, value) for name, value in os.environ.items() if name.startswith("CGSPN_"))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _gpu(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    memory = properties.total_memory / 2**30
    return f"{properties.name}, {memory:.0f} GiB, compute capability {properties.major}.{properties.minor}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    print(report())
