"""LightningModules and DataModules by class name, and the arguments they take."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import typing
from typing import Any

from cgspn import registry
from cgspn.cli.errors import UsageError
from cgspn.errors import unknown_name


def find_class(key: str, name: str, base: type) -> type:
    """The subclass of ``base`` with this short name or import path.

    Raises:
        UsageError: If there is none; the message lists the known ones.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(f"{key}: {name!r} is not the name or import path of a class.")
    if "." in name:
        module_name, _, class_name = name.rpartition(".")
        try:
            found = getattr(importlib.import_module(module_name), class_name, None)
        except ModuleNotFoundError as error:
            raise UsageError(f"{key}: cannot import {name!r}: {error}.") from None
        if isinstance(found, type) and issubclass(found, base):
            return found
        raise UsageError(f"{key}: {name!r} is not a {base.__name__}.")
    if name not in (known := subclasses(base)):
        raise UsageError(unknown_name(key, name, public_subclasses(base)))
    return known[name]


def subclasses(base: type) -> dict[str, type]:
    """All imported subclasses of a class by name."""
    found: dict[str, type] = {}
    child: type
    for child in base.__subclasses__():
        found |= {child.__name__: child, **subclasses(child)}
    return found


def public_subclasses(base: type) -> list[str]:
    """Names of the subclasses that are worth proposing: neither Lightning's own nor private nor abstract."""
    return [
        name
        for name, cls in subclasses(base).items()
        if name[0] != "_" and not cls.__module__.startswith("lightning.") and not inspect.isabstract(cls)
    ]


def class_path(cls: type) -> str:
    """The import path of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def arguments_of(cls: type) -> dict[str, inspect.Parameter]:
    """Constructor arguments of a class with resolved annotations."""
    hints = registry.argument_types(cls)
    return {
        name: parameter.replace(annotation=hints.get(name, Any))
        for name, parameter in inspect.signature(cls).parameters.items()
    }


def fields_of(annotation: Any) -> list[str]:
    """Field names of an argument that is a dataclass, possibly optional; else none."""
    candidates = [annotation, *typing.get_args(annotation)]
    return [f.name for c in candidates if dataclasses.is_dataclass(c) for f in dataclasses.fields(c)]
