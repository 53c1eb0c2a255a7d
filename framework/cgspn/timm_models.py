"""The encoders under ``timm.create_model``, as soon as both packages are imported, in either order."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

PREFIX = "cgspn_"


def register_when_imported() -> None:
    """Registers the encoders with timm now if it is imported, else when it will be.

    timm is never imported from here: it is no dependency, and its import takes seconds.
    """
    if "timm.models" in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, AfterTimm())


class AfterTimm(importlib.abc.MetaPathFinder):
    """Lets the import of ``timm.models`` end with ``register``."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The usual spec, for ``timm.models`` alone."""
        if name != "timm.models":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Registers every encoder whose name starts with ``cgspn_``; timm has others called ``vit_...``."""
    from timm.models import register_model

    from cgspn.backbones import list_models

    for name in list_models(f"{PREFIX}*"):
        register_model(entry_point(name))


def entry_point(name: str) -> Callable[..., Any]:
    """The function with timm's arguments that builds one encoder."""

    def build(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Mapping[str, Any] | None = None,
        cache_dir: Any = None,
        **arguments: Any,
    ) -> Any:
        from cgspn.backbones import create_model

        weights = (pretrained_cfg_overlay or {}).get("file") if pretrained else None
        if pretrained and weights is None:
            raise ValueError(
                f"There are no published weights of {name}; name your own with "
                "pretrained_cfg_overlay={'file': <folder, run or checkpoint>}."
            )
        encoder: Any = create_model(name, weights, **arguments)
        encoder.pretrained_cfg = encoder.default_cfg = timm_config(name, encoder)
        return encoder

    build.__name__ = build.__qualname__ = name
    build.__module__ = __name__
    return build


def timm_config(name: str, encoder: Any) -> dict[str, Any]:
    """What ``timm.data.resolve_model_data_config`` reads."""
    size, mean, std = encoder.transform
    return {
        "architecture": name,
        "input_size": (len(mean), *size),
        "fixed_input_size": False,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "mean": mean,
        "std": std,
        "num_classes": encoder.num_classes,
        "classifier": "classifier",
    }
