"""Whole encoders in files: ``model.safetensors`` with ``config.json``, or one inside a checkpoint."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

from torch import Tensor, nn

import cgspn
from cgspn.backbones.checkpoint_files import read_checkpoint
from cgspn.backbones.weights import load_part, load_weights, save_tensors
from cgspn.registry import BACKBONES

CONFIG, WEIGHTS = "config.json", "model.safetensors"
LAST_CHECKPOINT = Path("checkpoints", "last.ckpt")
# What may differ between a model and the weights it starts from without changing what the weights mean.
FREE = ("img_size", "mean", "std", "num_classes", "drop_path_rate")
# The hyperparameters of training modules that describe what they train.
NODE_NAMES = ("encoder", "student")


class Pretrained(NamedTuple):
    """An encoder read from ``path``: its config node and its tensors by name."""

    path: Path
    node: dict[str, Any]
    tensors: dict[str, Tensor]


class Preprocessing(NamedTuple):
    """How a picture becomes the encoder's input: ``cgspn.ImageTransform(*encoder.transform)`` does it.

    ``size`` is (height, width) in pixels, ``mean`` and ``std`` are of each channel, for values in [0, 1].
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class PretrainedMixin:
    """Saving and loading for encoders that keep their constructor's arguments in ``config``."""

    config: dict[str, Any]
    img_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def transform(self) -> Preprocessing:
        """Size, mean and std of the images that the encoder was trained on; other sizes work too."""
        return Preprocessing(self.img_size, self.mean, self.std)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes ``model.safetensors`` and ``config.json``, which together are the whole encoder.

        Raises:
            ValueError: If the encoder's class is not registered, so that it could not be read back.
        """
        node = {"type": name_of(type(self)), **self.config}
        try:
            text = json.dumps({"cgspn_version": cgspn.__version__, "encoder": node}, indent=2)
        except TypeError as error:
            raise ValueError(f"The encoder's arguments cannot be written as JSON: {error}.") from None
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(folder / WEIGHTS, cast(nn.Module, self).state_dict(), {"format": "pt"})
        (folder / CONFIG).write_text(text + "\n")

    @classmethod
    def from_pretrained(cls, path: str | Path, part: str = "encoder") -> Self:
        """Reads an encoder, in evaluation mode and with the dtypes it was saved with.

        Args:
            path: A folder that ``save_pretrained`` wrote, a run folder (its ``last.ckpt`` is read) or a
                checkpoint.
            part: Which of a checkpoint's encoders to take.

        Raises:
            ValueError: If there is nothing of the kind, it cannot be read or holds another kind of encoder.
        """
        source = read_pretrained(path, part)
        target = target_of(source.node)
        if not (isinstance(target, type) and issubclass(target, cls)):
            raise ValueError(f"{source.path} holds a {source.node['type']}, which is no {cls.__name__}.")
        return cast(Self, restore(source))


def list_models(pattern: str = "*") -> list[str]:
    """Sorted names of the encoders that match a pattern such as ``*so400m*`` (case counts)."""
    return fnmatch.filter(BACKBONES.names(), pattern)


def create_model(name: str, pretrained: str | Path | None = None, **overrides: Any) -> nn.Module:
    """Builds an encoder by name.

    Args:
        name: One of ``list_models()``.
        pretrained: Weights: a folder that ``save_pretrained`` wrote, a run folder or a checkpoint. Image
            size, mean and std come from there unless given; any other difference to ``name`` is an error.
        **overrides: Arguments of the encoder other than its defaults, such as ``num_classes=10`` or
            ``operator={"type": "cgspn", "latent_dim": 32}``. With ``num_classes`` other than the weights'
            the classifier is new; learned positions are resampled to ``img_size``.

    Returns:
        The encoder, in training mode as it was initialised, in evaluation mode with ``pretrained``.

    Raises:
        ValueError: If a name, argument or file is not valid, or the weights belong to another model.
    """
    checked = BACKBONES.check({"type": name, **overrides})
    if pretrained is None:
        return BACKBONES.build(checked)
    source = read_pretrained(pretrained)
    stored, wanted = completed(source.node), completed(checked)
    if target_of(source.node) is not target_of(checked):
        raise ValueError(f"{source.path} holds a {stored['type']}, which is no {name}.")
    for key, value in wanted.items():
        if key in ("type", *FREE) or key in checked or same(stored[key], value):
            continue
        raise ValueError(
            f"{source.path} has {key}={stored[key]!r}, {name} has {value!r}: it belongs to another model; "
            f"give {key}={stored[key]!r} if that is what you want."
        )
    free = {key: stored[key] for key in FREE if key in stored and key not in checked}
    return restore(source._replace(node={**checked, **free}))


def restore(source: Pretrained) -> nn.Module:
    """Builds the encoder of ``source.node`` with the weights and dtypes stored, in evaluation mode.

    A classifier of another size than the stored one is left as it was initialised.
    """
    encoder = BACKBONES.build(source.node)
    own = encoder.state_dict()
    tensors = {
        name: tensor
        for name, tensor in source.tensors.items()
        if not name.startswith("classifier.") or (name in own and own[name].shape == tensor.shape)
    }
    for name, tensor in own.items():
        if name.startswith("classifier."):
            tensors.setdefault(name, tensor)
    for name, parameter in encoder.named_parameters():
        if name in tensors:
            parameter.data = parameter.data.to(tensors[name].dtype)
    load_weights(encoder, tensors, source.path)
    return encoder.eval()


def read_pretrained(path: str | Path, part: str = "encoder") -> Pretrained:
    """Reads an encoder's config node and weights.

    Args:
        path: A folder that ``save_pretrained`` wrote, a run folder (its ``last.ckpt`` is read) or a
            checkpoint.
        part: Which of a checkpoint's encoders to take.

    Raises:
        ValueError: If there is nothing of the kind, it cannot be read, or it does not say what it holds.
    """
    file, node = find_pretrained(path, part)
    return Pretrained(file, node, load_part(file, "" if file.name == WEIGHTS else part))


def find_pretrained(path: str | Path, part: str = "encoder") -> tuple[Path, dict[str, Any]]:
    """As ``read_pretrained``, but returns the weight file unread and the config node."""
    if not isinstance(path, str | Path) or not str(path):
        raise ValueError(
            f"pretrained={path!r}: no weights are published; give a folder, a run or a checkpoint of yours."
        )
    path = Path(path)
    if path.name in (CONFIG, WEIGHTS):
        path = path.parent
    if path.is_dir():
        if (path / CONFIG).is_file():
            return path / WEIGHTS, read_config(path / CONFIG)
        if not (path / LAST_CHECKPOINT).is_file():
            raise ValueError(f"{path} holds neither {CONFIG} with {WEIGHTS} nor {LAST_CHECKPOINT}.")
        path = path / LAST_CHECKPOINT
    if not path.is_file():
        raise ValueError(f"There is no pretrained encoder {path}; give a folder, a run or a checkpoint.")
    return path, read_node(path, part)


def read_config(path: Path) -> dict[str, Any]:
    """The checked config node in a ``config.json``."""
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("encoder"), dict):
        raise ValueError(f"{path} does not describe an encoder of cgspn: it has no mapping 'encoder'.")
    return BACKBONES.check(content["encoder"], f"{path}: encoder")


def read_node(path: Path, part: str) -> dict[str, Any]:
    """The checked config node of an encoder in the hyperparameters of a checkpoint."""
    hyperparameters = read_checkpoint(path)["hyper_parameters"]
    names = NODE_NAMES if part == "encoder" else (part,)
    node = next((hyperparameters[name] for name in names if name in hyperparameters), None)
    if not isinstance(node, Mapping | str):
        raise ValueError(f"{path} does not say what its part {part!r} is: no such hyperparameter.")
    return BACKBONES.check(node, f"{path}: {part}")


def completed(node: Mapping[str, Any]) -> dict[str, Any]:
    """A checked node with the entry's defaults filled in, nested nodes as they are."""
    parameters = BACKBONES.parameters(str(node["type"]))
    return {"type": node["type"], **{key: node.get(key, p.default) for key, p in parameters.items()}}


def target_of(node: Mapping[str, Any]) -> Any:
    """The class that a node builds."""
    entry = BACKBONES.find(node["type"])
    return getattr(entry, "target", entry)


def same(a: Any, b: Any) -> bool:
    """Whether two config values are equal; lists equal tuples."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def name_of(cls: type) -> str:
    """The name under which a class is registered as a backbone.

    Raises:
        ValueError: If it is not, so that no config could name it.
    """
    names = [name for name in BACKBONES.names() if BACKBONES.find(name) is cls]
    if not names:
        raise ValueError(f"{cls.__name__} is not a registered backbone, so it cannot be read back.")
    return names[0]
