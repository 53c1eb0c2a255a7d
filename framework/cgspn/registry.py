"""Named, swappable parts: backbones, blocks, operators, pooling heads and teachers.

A config node is a mapping ``{type: name, **arguments}``; ``Registry.check`` validates one without
building it and ``Registry.build`` turns it into an object. Third-party packages add entries through
the entry-point group ``cgspn.plugins``.
"""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import mmengine

PLUGIN_GROUP = "cgspn.plugins"


@functools.cache
def load_plugins() -> tuple[str, ...]:
    """Loads every entry point of the group ``cgspn.plugins`` once and returns their names."""
    names = []
    for entry_point in importlib.metadata.entry_points(group=PLUGIN_GROUP):
        entry_point.load()
        names.append(entry_point.name)
    return tuple(names)


def unknown_name(kind: str, name: object, valid: Iterable[str]) -> str:
    """One line that names an unknown value, the nearest match and the valid choices."""
    choices = sorted(valid)
    nearest = difflib.get_close_matches(str(name), choices, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"Unknown {kind} {name!r}{hint} Valid: {', '.join(choices)}."


class Registry(mmengine.Registry):
    """An mmengine registry whose config nodes are checked before anything is built.

    Args:
        name: What one entry is called in messages, such as ``operator``.
        locations: Modules whose import registers the built-in entries.
        context: Constructor arguments that the owner of a node supplies (``dim``, for instance), so
            that a node need not name them.
    """

    def __init__(self, name: str, *, locations: list[str], context: tuple[str, ...] = ()) -> None:
        super().__init__(name, scope="cgspn", locations=locations)
        self.kind = name
        self.context = context

    def register_preset(self, name: str, target: type, **defaults: Any) -> None:
        """Registers ``name`` as ``target`` with other default arguments."""

        def preset(**arguments: Any) -> Any:
            return target(**{**defaults, **arguments})

        signature = inspect.signature(target)
        unknown = defaults.keys() - signature.parameters.keys()
        if unknown:
            raise ValueError(
                f"Preset {name!r} sets {sorted(unknown)}, which {target.__name__} does not take."
            )
        parameters = [p.replace(default=defaults.get(n, p.default)) for n, p in signature.parameters.items()]
        preset.__name__ = preset.__qualname__ = name
        preset.__doc__ = target.__doc__
        preset.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        preset.target = target  # type: ignore[attr-defined]
        self.register_module(name=name, module=preset)

    def names(self) -> list[str]:
        """Sorted names of all entries, plugins included."""
        self.import_from_location()
        load_plugins()
        return sorted(self.module_dict)

    def find(self, name: object) -> Callable[..., Any]:
        """Returns the class or preset called ``name``.

        Raises:
            ValueError: If there is none; the message lists the valid names and the nearest one.
        """
        if name not in self.names():
            raise ValueError(unknown_name(self.kind, name, self.names()))
        return typing.cast(Callable[..., Any], self.module_dict[str(name)])

    def parameters(self, name: str) -> dict[str, inspect.Parameter]:
        """Arguments of the entry ``name``, in order, with resolved annotations."""
        entry = self.find(name)
        hints = annotations(entry)
        return {
            key: parameter.replace(annotation=hints.get(key, Any))
            for key, parameter in inspect.signature(entry).parameters.items()
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        }

    def check(self, node: Mapping[str, Any], path: str = "") -> None:
        """Validates a config node and all nodes below it without building anything.

        Raises:
            ValueError: If a name or argument is unknown or a required argument is missing.
        """
        where = path or self.kind
        if not isinstance(node, Mapping) or "type" not in node:
            raise ValueError(f"{where}: expected a mapping with the key 'type', got {node!r}.")
        name = node["type"]
        try:
            parameters = self.parameters(name)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        arguments = {key: value for key, value in node.items() if key != "type"}
        for key in arguments.keys() - parameters.keys():
            raise ValueError(f"{where}: {unknown_name(f'argument of {name}', key, parameters)}")
        for key, parameter in parameters.items():
            registry = node_registry(parameter.annotation)
            if key not in arguments:
                if parameter.default is parameter.empty and key not in self.context:
                    raise ValueError(f"{where}: {name} needs the argument {key!r}.")
            elif registry is not None and arguments[key] is not None:
                registry.check(arguments[key], f"{where}.{key}")

    def build(self, node: Mapping[str, Any], **context: Any) -> Any:
        """Builds the object that a config node describes.

        Args:
            node: Mapping ``{type: name, **arguments}``.
            **context: Arguments of the owner; those that the entry does not take, and those that the
                node sets itself, are left out.

        Raises:
            ValueError: If the node is not valid.
        """
        self.check(node)
        parameters = self.parameters(node["type"])
        arguments = {key: value for key, value in context.items() if key in parameters}
        arguments.update((key, value) for key, value in node.items() if key != "type")
        return self.find(node["type"])(**arguments)


def annotations(entry: Callable[..., Any]) -> dict[str, Any]:
    """Resolved annotations of a class's, preset's or function's arguments, ``Annotated`` kept."""
    target = getattr(entry, "target", entry)
    function = target.__init__ if inspect.isclass(target) else target
    return typing.get_type_hints(function, include_extras=True)


def node_registry(annotation: Any) -> Registry | None:
    """The registry whose nodes an argument with this annotation takes, or None."""
    if typing.get_origin(annotation) is Annotated:
        return next((m for m in annotation.__metadata__ if isinstance(m, Registry)), None)
    for argument in typing.get_args(annotation):
        if (registry := node_registry(argument)) is not None:
            return registry
    return None


OPERATORS = Registry("operator", locations=["cgspn.operators"], context=("dim", "num_heads"))
BLOCKS = Registry("block", locations=["cgspn.blocks"], context=("dim", "num_heads"))
HEADS = Registry("head", locations=["cgspn.backbones.heads"], context=("dim", "num_heads"))
BACKBONES = Registry("backbone", locations=["cgspn.backbones"])
TEACHERS = Registry("teacher", locations=["cgspn.teachers"])
DECODERS = Registry(
    "decoder", locations=["cgspn.segmentation.decoders"], context=("in_channels", "num_classes")
)

OperatorConfig = Annotated[Mapping[str, Any], OPERATORS]
BlockConfig = Annotated[Mapping[str, Any], BLOCKS]
HeadConfig = Annotated[Mapping[str, Any], HEADS]
BackboneConfig = Annotated[Mapping[str, Any], BACKBONES]
TeacherConfig = Annotated[Mapping[str, Any], TEACHERS]
DecoderConfig = Annotated[Mapping[str, Any], DECODERS]
