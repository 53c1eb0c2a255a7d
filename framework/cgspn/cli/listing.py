"""``cgspn list``: what there is to name in configs, and the arguments of each entry."""

from __future__ import annotations

import argparse
import fnmatch
import inspect
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from cgspn.cli.errors import EXTRAS, UsageError
from cgspn.errors import unknown_name

if TYPE_CHECKING:
    from cgspn.registry import Registry

KINDS = ("backbones", "blocks", "operators", "teachers", "heads", "decoders")
WILDCARDS = "*?["


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("kind", nargs="?", metavar="KIND", help=f"one of {', '.join(KINDS)}; default: all")
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="entry whose arguments are shown, or a pattern such as '*so400m*' of entries to list",
    )


def run(args: argparse.Namespace) -> int:
    """Prints entries with one line each, or one entry with its arguments."""
    if args.kind is not None and args.kind not in KINDS:
        raise UsageError(unknown_name("kind", args.kind, KINDS))
    if args.name is not None and not any(c in args.name for c in WILDCARDS):
        print(entry_page(registry_of(args.kind), args.name))
        return 0
    pages = []
    for kind in KINDS if args.kind is None else (args.kind,):
        try:
            pages.append(kind_page(kind, args.name or "*"))
        except ModuleNotFoundError as error:
            extra = EXTRAS.get((error.name or "").partition(".")[0])
            if args.kind is not None or extra is None:
                raise
            pages.append(f"{kind}\n  need: pip install 'cgspn[{extra}]'")
    print("\n\n".join(pages))
    return 0


def registry_of(kind: str) -> Registry:
    """The registry of one of ``KINDS``."""
    from cgspn import registry

    return getattr(registry, kind.upper())


def kind_page(kind: str, pattern: str) -> str:
    """The entries of a kind, one line each.

    Raises:
        UsageError: If the pattern matches none.
    """
    registry = registry_of(kind)
    names = fnmatch.filter(registry.names(), pattern)
    if not names:
        raise UsageError(f"No {registry.kind} matches {pattern!r}; there are: {', '.join(registry.names())}.")
    width = max(map(len, names))
    rows = [f"  {name:<{width}}  {summary(registry, name)}" for name in names]
    return "\n".join([kind, *(shorten(row) for row in rows)])


def summary(registry: Registry, name: str) -> str:
    """The first line of an entry's docstring; for a preset what it presets."""
    entry = registry.find(name)
    target = getattr(entry, "target", None)
    if target is None:
        return (inspect.getdoc(entry) or "").partition("\n")[0]
    usual = inspect.signature(target).parameters
    changed = {
        key: parameter.default
        for key, parameter in registry.parameters(name).items()
        if parameter.default != usual[key].default
    }
    # What an encoder is made of says more than its numbers.
    order = sorted(changed, key=lambda key: not isinstance(changed[key], dict))
    return f"{target.__name__}, " + ", ".join(f"{key} {value_text(changed[key])}" for key in order)


def entry_page(registry: Registry, name: str) -> str:
    """What an entry is, and its arguments with type, default and meaning."""
    from docstring_parser import DocstringStyle, parse

    entry = registry.find(name)
    document = parse(inspect.getdoc(getattr(entry, "target", entry)) or "", DocstringStyle.GOOGLE)
    meanings = {item.arg_name: " ".join((item.description or "").split()) for item in document.params}
    lines = [f"{registry.kind} {name}: {summary(registry, name)}", ""]
    parameters = registry.parameters(name)
    for key, parameter in parameters.items():
        if key in registry.context:
            given = "given by its owner"
        elif parameter.default is parameter.empty:
            given = "required"
        else:
            given = f"default {value_text(parameter.default)}"
        lines.append(f"  {key}: {type_text(parameter.annotation)}, {given}")
        lines += textwrap.wrap(
            meanings.get(key, ""), width() - 6, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    if not parameters:
        lines.append("  It takes no arguments.")
    lines += ["", f"in a config: {{type: {name}{', ...' if parameters else ''}}}"]
    return "\n".join(lines)


def type_text(annotation: Any) -> str:
    """An annotation as it is written; a registry node by what it configures."""
    from cgspn.registry import node_registry

    if (registry := node_registry(annotation)) is not None:
        return f"{registry.kind} node"
    return inspect.formatannotation(annotation).replace("collections.abc.", "").replace("typing.", "")


def value_text(value: Any) -> str:
    """A default as YAML would have it on one line."""
    if isinstance(value, dict):
        if value.keys() == {"type"}:
            return str(value["type"])
        return "{" + ", ".join(f"{key}: {value_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(value_text, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def width() -> int:
    """Columns of the terminal, 100 where there is none."""
    return shutil.get_terminal_size((100, 24)).columns


def shorten(row: str) -> str:
    """A row cut to the terminal's width, whole where the output goes to a file or another program."""
    return row if len(row) <= width() or not sys.stdout.isatty() else row[: width() - 3] + "..."
