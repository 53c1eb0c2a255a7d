"""Registry nodes on the command line: config files and dotted flags laid over each other, then checked.

jsonargparse replaces plain mappings whole and does not look inside. So the arguments of the model that
take registry nodes are taken out of the config files and flags, merged and checked here, and handed to
jsonargparse as one value each, after everything else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import yaml
from lightning.pytorch import LightningDataModule, LightningModule

from cgspn import registry
from cgspn.cli.classes import arguments_of, class_path, fields_of, find_class, public_subclasses
from cgspn.cli.command_line import CommandLine
from cgspn.cli.errors import UsageError
from cgspn.cli.stored_runs import read_stored_run
from cgspn.errors import unknown_name

CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")


def expand(command: str, arguments: Sequence[str], scratch: Path) -> list[str]:
    """Rewrites arguments for LightningCLI so that the config rules hold.

    Precedence, lowest first: defaults, hyperparameters of ``--ckpt_path``, config files in order, flags.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
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
        model_class, hyperparameters = read_stored_run(str(ckpt_path), command, model_class)
        line.files.insert(0, {"model": {"init_args": hyperparameters}})
    if model_class is None:
        known = ", ".join(sorted(public_subclasses(LightningModule)))
        raise UsageError(f"No model is given; name a config file with -c, or a class with --model: {known}.")
    for content in line.files:
        if isinstance(content.get("model"), Mapping):
            content["model"] = spelled_out(content["model"], model_class)
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
        arguments = (content.get("model") or {}).get("init_args", {})
        for name in layers.keys() & arguments.keys():
            layers[name].append(arguments.pop(name))
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


def spelled_out(section: Mapping[str, Any], cls: type) -> dict[str, Any]:
    """A section of a config file with ``class_path`` and with all arguments below ``init_args``."""
    loose = {name: value for name, value in section.items() if name not in CLASS_KEYS}
    keys = {name: value for name, value in section.items() if name in CLASS_KEYS}
    return {"class_path": class_path(cls), **keys, "init_args": {**(section.get("init_args") or {}), **loose}}


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


def check_arguments(line: CommandLine, key: str, cls: type, base: type) -> None:
    """Raises UsageError if a file or flag gives ``model`` or ``data`` an argument that it does not take."""
    parameters = arguments_of(cls)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    given: list[tuple[str, ...]] = []
    for content in line.files:
        section = content.get(key)
        # A class that a later file or flag replaces may have had other arguments.
        if (
            isinstance(section, Mapping)
            and find_class(key, section.get("class_path", class_path(cls)), base) is cls
        ):
            arguments = {**section, **(section.get("init_args") or {})}
            given += [(name,) for name in arguments]
            given += [
                (name, n) for name, value in arguments.items() if isinstance(value, Mapping) for n in value
            ]
    for name, _ in line.flags:
        if name.startswith(f"--{key}."):
            path = name.removeprefix(f"--{key}.").removeprefix("init_args.").removesuffix("+")
            given.append(tuple(path.split(".")))
    for name, *below in given:
        if name in (*CLASS_KEYS, "help"):
            continue
        if name not in parameters:
            raise UsageError(f"{key}: {unknown_name(f'argument of {cls.__name__}', name, parameters)}")
        fields = fields_of(parameters[name].annotation)
        if below and fields and below[0] not in fields:
            raise UsageError(f"{key}.{name}: {unknown_name('argument', below[0], fields)}")
