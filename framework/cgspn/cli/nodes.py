"""Registry nodes on the command line: config files and dotted flags laid over each other, then checked.

jsonargparse replaces plain mappings whole and does not look inside. So the arguments of the model that
take registry nodes are taken out of the config files and flags, merged and checked here, and handed to
jsonargparse as one value each, after everything else.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule

from cgspn import registry
from cgspn.cli.errors import UsageError
from cgspn.errors import unknown_name

OPTIONAL_MODULES = ("cgspn.segmentation",)
CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")


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


def expand(arguments: Sequence[str], scratch: Path) -> list[str]:
    """Rewrites arguments for LightningCLI so that the config rules hold.

    Precedence, lowest first: defaults, hyperparameters of ``--ckpt_path``, config files in order, flags.

    Args:
        arguments: What follows the command.
        scratch: An empty folder for the rewritten config files.

    Returns:
        The new arguments; they begin with a default for ``run.name``.

    Raises:
        UsageError: If a class, argument or file is not valid.
        ValueError: If a registry node is not valid.
    """
    line = CommandLine(arguments)
    model_class = line.class_of("model", LightningModule)
    data_class = line.class_of("data", LightningDataModule)
    ckpt_path = line.last("ckpt_path")
    if ckpt_path is not None and ckpt_path not in ("null", "None"):
        model_class, hyperparameters = read_checkpoint(Path(str(ckpt_path)), model_class)
        line.files.insert(0, {"model": {"init_args": hyperparameters}})
    if model_class is None:
        raise UsageError("No model is given: name a config file with -c, or a class with --model.")
    for content in line.files:
        section = content.get("model")
        if isinstance(section, Mapping) and "class_path" not in section:
            content["model"] = {"class_path": class_path(model_class), **section}
    check_arguments(line, "model", model_class, LightningModule)
    if data_class is not None:
        check_arguments(line, "data", data_class, LightningDataModule)

    nodes = merge_nodes(line, model_class)
    rewritten = [f"--run.name={line.default_name or model_class.__name__}"]
    for index, content in enumerate(line.files):
        file = scratch / f"{index}.yaml"
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        rewritten.append(f"--config={file}")
    rewritten += [name if value is None else f"{name}={value}" for name, value in line.flags]
    rewritten += [f"--model.init_args.{name}={json.dumps(node)}" for name, node in nodes.items()]
    return rewritten


def merge_nodes(line: CommandLine, model_class: type) -> dict[str, Any]:
    """Takes the model's registry nodes out of ``line`` and returns them merged and checked."""
    parameters = {
        name: parameter
        for name, parameter in arguments_of(model_class).items()
        if registry.node_registry(parameter.annotation) is not None
    }
    layers: dict[str, list[Any]] = {name: [] for name in parameters}
    for content in line.files:
        section = content.get("model")
        if isinstance(section, dict):
            for mapping in (section, section.get("init_args") or {}):
                for name in layers.keys() & mapping.keys():
                    layers[name].append(mapping.pop(name))
    flags: dict[str, Any] = {}
    for flag in list(line.flags):
        path = flag[0].removeprefix("--model.").removeprefix("init_args.").split(".")
        if flag[0].startswith("--model.") and path[0] in parameters and path[1:] != ["help"]:
            line.flags.remove(flag)
            value = flag_value(flag)
            for key in reversed(path[1:]):
                value = {key: value}
            flags[path[0]] = registry.merge(flags[path[0]], value) if path[0] in flags else value
    nodes = {}
    for name, parameter in parameters.items():
        given = layers[name] + ([flags[name]] if name in flags else [])
        if given:
            merged = parameter.default if isinstance(parameter.default, Mapping) else {}
            for layer in given:
                merged = registry.merge(merged, layer)
            nodes[name] = registry.check_value(parameter, merged, f"model.{name}")
    return nodes


def flag_value(flag: tuple[str, str | None]) -> Any:
    """The value of a flag below a node: a mapping, None, or text that its entry will interpret."""
    name, text = flag
    if text is None:
        raise UsageError(f"{name} needs a value.")
    try:
        value = jsonargparse.get_loader("yaml")(text)
    except yaml.YAMLError:
        value = text
    return value if isinstance(value, Mapping) or value is None else registry.Raw(text)


def is_option(argument: str) -> bool:
    """Whether an argument is the next option rather than a value such as ``-1``."""
    return argument.startswith("-") and not argument[1:2].isdigit() and argument[1:2] not in ("", ".")


def load_mapping(path: str) -> dict[str, Any]:
    """Reads a YAML file whose top level is a mapping."""
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"Config file {path} does not exist.")
    try:
        content = jsonargparse.get_loader("yaml")(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"Config file {path} is not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"Config file {path} must hold a mapping at its top level, got {content!r:.60}.")
    for key in ("model", "data"):
        if isinstance(content.get(key), str):
            content[key] = {"class_path": content[key]}
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


def find_class(key: str, name: str, base: type) -> type:
    """The subclass of ``base`` with this short name or import path.

    Raises:
        UsageError: If there is none; the message lists the known ones.
    """
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
        for module in OPTIONAL_MODULES:
            importlib.import_module(module)
        known = subclasses(base)
    if name not in known:
        ours = [other for other, found in known.items() if not found.__module__.startswith("lightning.")]
        raise UsageError(unknown_name(key, name, ours))
    return known[name]


def subclasses(base: type) -> dict[str, type]:
    """All imported subclasses of a class by name."""
    found: dict[str, type] = {}
    child: type
    for child in base.__subclasses__():
        found |= {child.__name__: child, **subclasses(child)}
    return found


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


def check_arguments(line: CommandLine, key: str, cls: type, base: type) -> None:
    """Raises UsageError if a file or flag gives ``model`` or ``data`` an argument that it does not take."""
    parameters = arguments_of(cls)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    given: list[str] = []
    for content in line.files:
        section = content.get(key)
        # A class that a later file or flag replaces may have had other arguments.
        if (
            isinstance(section, Mapping)
            and find_class(key, section.get("class_path", class_path(cls)), base) is cls
        ):
            given += [name for name in section if name not in CLASS_KEYS]
            given += section.get("init_args") or {}
    for name, _ in line.flags:
        if name.startswith(f"--{key}."):
            given.append(name.removeprefix(f"--{key}.").removeprefix("init_args.").split(".")[0].rstrip("+"))
    for name in given:
        if name not in parameters and name not in (*CLASS_KEYS, "help"):
            raise UsageError(f"{key}: {unknown_name(f'argument of {cls.__name__}', name, parameters)}")


def read_checkpoint(path: Path, model_class: type | None) -> tuple[type | None, dict[str, Any]]:
    """The class and hyperparameters stored in a checkpoint.

    Args:
        path: The checkpoint.
        model_class: The class that files and flags ask for; None means the checkpoint's.

    Raises:
        UsageError: If the file is missing, is no checkpoint or holds another class.
    """
    if path.is_dir():
        return model_class, {}
    if not path.is_file():
        raise UsageError(f"Checkpoint {path} does not exist; give the path of a .ckpt file.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        hyperparameters = dict(checkpoint.get("hyper_parameters", {}))
        _ = checkpoint["state_dict"]
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(f"{path} is not a checkpoint of a model: {type(error).__name__}: {reason}") from None
    stored = hyperparameters.pop("_class_path", None)
    hyperparameters.pop("_instantiator", None)
    if stored is None:
        return model_class, {}
    stored_class = find_class("model", stored, LightningModule)
    if model_class not in (None, stored_class):
        assert model_class is not None
        raise UsageError(
            f"{path} holds a {stored_class.__name__}, not a {model_class.__name__}; "
            "--ckpt_path continues the same class, init_from takes weights from another one."
        )
    return stored_class, hyperparameters
