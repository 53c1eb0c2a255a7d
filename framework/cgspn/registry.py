"""Named, swappable parts: backbones, blocks, operators, pooling heads and teachers.

A config node is a mapping ``{type: name, **arguments}``. ``merge`` lays one node over another,
``Registry.check`` validates one without building it and ``Registry.build`` turns it into an object.
Third-party packages add entries through the entry-point group ``cgspn.plugins``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
import types
import typing
import warnings
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jsonargparse
import mmengine

from cgspn.errors import unknown_name

PLUGIN_GROUP = "cgspn.plugins"


_plugins: dict[str, str] = {}


def load_plugins() -> dict[str, str]:
    """Loads every entry point of the group ``cgspn.plugins`` once and returns their targets by name.

    One that fails is a warning: it must not take down work that does not need it.
    """
    for entry_point in importlib.metadata.entry_points(group=PLUGIN_GROUP):
        if entry_point.name in _plugins:
            continue
        # Recorded first: a plugin may look up names while it is being imported.
        _plugins[entry_point.name] = entry_point.value
        try:
            entry_point.load()
        except Exception as error:
            warnings.warn(f"Plugin {entry_point.name!r} was not loaded: {error!r}", stacklevel=2)
    return dict(_plugins)


class Raw(str):
    """Text of a command-line value whose type only the entry that receives it knows."""


def merge(base: Any, overlay: Any) -> Any:
    """Lays one config value over another, key by key at any depth.

    A mapping whose ``type`` changes is replaced whole; a bare name over a node stands for ``{type: name}``.
    """
    if isinstance(base, Mapping) and "type" in base and isinstance(overlay, str):
        overlay = {"type": str(overlay)}
    if isinstance(base, str) and isinstance(overlay, Mapping) and "type" not in overlay:
        base = {"type": str(base)}
    if not isinstance(base, Mapping) or not isinstance(overlay, Mapping):
        return overlay
    if "type" in base and overlay.get("type", base["type"]) != base["type"]:
        return dict(overlay)
    merged = dict(base)
    for key, value in overlay.items():
        merged[key] = merge(merged[key], value) if key in merged else value
    return merged


class Registry(mmengine.Registry):
    """An mmengine registry whose config nodes are checked before anything is built.

    Args:
        name: What one entry is called in messages, such as ``operator``.
        locations: Modules whose import registers the built-in entries.
        context: Constructor arguments that the owner of a node supplies (``dim``, for instance), so
            that a node need not name them.
    """

    def __init__(
        self,
        name: str,
        *,
        locations: list[str],
        context: tuple[str, ...] = (),
    ) -> None:
        super().__init__(name, scope="cgspn", locations=locations)
        self.kind = name
        self.context = context

    def import_from_location(self) -> None:
        """Imports the built-in entries and the plugins."""
        super().import_from_location()
        load_plugins()

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
        hints = argument_types(entry)
        return {
            key: parameter.replace(annotation=hints.get(key, Any))
            for key, parameter in inspect.signature(entry).parameters.items()
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        }

    def check(self, node: Any, path: str = "") -> dict[str, Any]:
        """Validates a config node and all nodes below it without building anything.

        Args:
            node: Mapping ``{type: name, **arguments}``, or the bare name of an entry.
            path: Where the node stands in a config, for messages.

        Returns:
            The node as a plain dict: values have the types that the entry asks for, and a nested node
            without ``type`` is laid over the entry's default.

        Raises:
            ValueError: If a name or argument is unknown, a value has another type or a required
                argument is missing.
        """
        where = path or self.kind
        if isinstance(node, str):
            node = {"type": str(node)}
        if not isinstance(node, Mapping) or "type" not in node:
            raise ValueError(f"{where}: expected a mapping with the key 'type', got {node!r}.")
        name = str(node["type"])
        try:
            parameters = self.parameters(name)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        checked: dict[str, Any] = {"type": name}
        for key, value in node.items():
            if key == "type":
                continue
            if key not in parameters:
                raise ValueError(f"{where}: {unknown_name(f'argument of {name}', key, parameters)}")
            checked[key] = check_value(parameters[key], value, f"{where}.{key}")
        for key, parameter in parameters.items():
            if parameter.default is parameter.empty and key not in checked and key not in self.context:
                raise ValueError(f"{where}: {name} needs the argument {key!r}.")
        return checked

    def build(self, node: Mapping[str, Any], **context: Any) -> Any:
        """Builds the object that a config node describes.

        Args:
            node: Mapping ``{type: name, **arguments}``.
            **context: Arguments of the owner; those that the entry does not take, and those that the
                node sets itself, are left out.

        Raises:
            ValueError: If the node is not valid.
        """
        checked = self.check(node)
        entry = self.find(checked.pop("type"))
        parameters = inspect.signature(entry).parameters
        arguments = {key: value for key, value in context.items() if key in parameters}
        return entry(**{**arguments, **checked})


def check_value(parameter: inspect.Parameter, value: Any, path: str) -> Any:
    """Validates one argument, nested nodes included, and returns it with the annotated type.

    Raises:
        ValueError: If the value does not fit the annotation; the message starts with ``path``.
    """
    annotation = parameter.annotation
    registry = node_registry(annotation)
    if registry is None:
        return convert(annotation, value, path)
    if value is None and types.NoneType in typing.get_args(annotation):
        return None
    if isinstance(value, Mapping) and "type" not in value and isinstance(parameter.default, Mapping):
        value = merge(parameter.default, value)
    return registry.check(value, path)


def convert(annotation: Any, value: Any, path: str) -> Any:
    """Returns ``value`` as the annotated type, or raises a ValueError that starts with ``path``."""
    if annotation in (Any, inspect.Parameter.empty):
        return value
    parser = value_parser(annotation)
    try:
        if isinstance(value, Raw):
            converted = parser.parse_args([f"--value={value}"]).value
        else:
            converted = parser.parse_object({"value": value}, defaults=False).value
        # jsonargparse lets None pass for every type.
        if converted is not None or types.NoneType in (annotation, *typing.get_args(annotation)):
            return converted
        raise jsonargparse.ArgumentError(None, "None")
    except jsonargparse.ArgumentError:
        text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        raise ValueError(f"{path}: expected {text.replace('typing.', '')}, got {value!r}.") from None


@functools.cache
def value_parser(annotation: Any) -> jsonargparse.ArgumentParser:
    """A parser with one option ``--value`` of the annotated type."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_argument("--value", type=annotation)
    return parser


def argument_types(entry: Callable[..., Any]) -> dict[str, Any]:
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


class OpenMMLabModels(mmengine.Registry):
    """What configs of OpenMMLab's frameworks find as ``cgspn.<name>``: every backbone, as feature maps.

    mmengine imports ``cgspn.registry`` when a config names the scope ``cgspn``.
    """

    def get(self, key: str) -> Callable[..., Any]:
        """Returns what builds the feature maps of a backbone.

        Raises:
            ValueError: If there is no such backbone; the message lists the valid names and the nearest one.
        """
        name = key.removeprefix("cgspn.")
        BACKBONES.find(name)
        return typing.cast(Callable[..., Any], importlib.import_module("cgspn.openmmlab").builder(name))


OPENMMLAB_MODELS = OpenMMLabModels("model", scope="cgspn", parent=mmengine.registry.MODELS)
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
