"""The arguments of ``cgspn fit`` and the like, taken apart into config files and flags."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from cgspn.cli.classes import find_class
from cgspn.cli.errors import UsageError


class CommandLine:
    """Arguments of ``cgspn fit`` and the like, taken apart.

    Args:
        arguments: What follows the command.

    Attributes:
        files: Contents of the config files, in order.
        flags: The other arguments as (name, value) pairs; value is None for a flag without one.
        default_name: Name for the run, from the first config file; None without one.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.files: list[dict[str, Any]] = []
        self.flags: list[tuple[str, str | None]] = []
        self.default_name: str | None = None
        pending = list(arguments)
        while pending:
            name, equals, value = pending.pop(0).partition("=")
            if not name.startswith("-"):
                raise UsageError(f"Unexpected argument {name + equals + value!r}; options start with --.")
            given = value if equals else None
            if given is None and pending and not is_option(pending[0]):
                given = pending.pop(0)
            if name in ("-c", "--config"):
                self._add_file(given)
            else:
                self.flags.append((name, resolve_latest(given)))

    def _add_file(self, path: str | None) -> None:
        if path is None:
            raise UsageError("-c needs the path of a config file.")
        self.files.append(resolve_latest(load_mapping(path)))
        if self.default_name is None:
            self.default_name = name_of_config(Path(path))

    def last(self, key: str) -> Any:
        """The value of a top-level key: that of the last flag, else that of the last file; else None."""
        values = [content[key] for content in self.files if key in content]
        values += [value for name, value in self.flags if name == f"--{key}"]
        return values[-1] if values else None

    def class_of(self, key: str, base: type) -> type | None:
        """The class that ``model`` or ``data`` names, or None."""
        chosen = None
        for content in self.files:
            section = content.get(key)
            chosen = section.get("class_path", chosen) if isinstance(section, Mapping) else section or chosen
        for name, value in self.flags:
            if name in (f"--{key}", f"--{key}.class_path"):
                chosen = value
        return None if chosen is None else find_class(key, str(chosen), base)


def is_option(argument: str) -> bool:
    """Whether an argument is the next option rather than a value such as ``-1``."""
    return argument.startswith("-") and not argument[1:2].isdigit() and argument[1:2] not in ("", ".")


def load_mapping(path: str) -> dict[str, Any]:
    """Reads a YAML file whose top level is a mapping."""
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"Config file {path} {'is a folder' if file.is_dir() else 'does not exist'}.")
    try:
        content = jsonargparse.get_loader("yaml")(file.read_text())
        # A node may hold itself, by an alias; nothing after this could walk through it.
        json.dumps(content, default=str, skipkeys=True)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"Config file {path} is not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"Config file {path} must hold a mapping at its top level, got {content!r:.60}.")
    if "config" in content:
        raise UsageError(f"Config file {path} has the key 'config'; name further files with -c.")
    for key in ("model", "data"):
        if isinstance(content.get(key), str):
            content[key] = {"class_path": content[key]}
        arguments = content[key].get("init_args") if isinstance(content.get(key), dict) else None
        if not isinstance(arguments, dict | None):
            raise UsageError(f"{key}.init_args must be a mapping, got {arguments!r}.")
    return content


def name_of_config(path: Path) -> str:
    """A run's name from its config file: the path below ``configs/``, or the file's name, no suffix."""
    parts = path.with_suffix("").parts
    below = len(parts) - parts[::-1].index("configs") if "configs" in parts else len(parts) - 1
    return "/".join(parts[below:])


def resolve_latest(value: Any) -> Any:
    """Replaces the link ``latest`` in paths by the numbered folder it points to now, at any depth."""
    if isinstance(value, Mapping):
        return {key: resolve_latest(item) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve_latest(item) for item in value]
    if isinstance(value, str) and "latest" in (parts := Path(value).parts):
        index = parts.index("latest")
        link = Path(*parts[: index + 1])
        if link.is_symlink():
            return str(link.parent.joinpath(link.readlink(), *parts[index + 1 :]))
    return value
