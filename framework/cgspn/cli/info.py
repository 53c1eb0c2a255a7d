"""``cgspn info``: what an encoder costs, part by part, for one image size."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgspn.cli.errors import UsageError

if TYPE_CHECKING:
    from cgspn.backbones.costs import EncoderCosts

NODE_NAMES = ("student", "encoder")
# Counts stay below 2**63.
LARGEST = 65535
COLUMNS = ("part", "parameters", "share", "MACs", "share", "activations, MiB", "share")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="name (see cgspn list backbones), config file, run, checkpoint or folder",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help="side, or height and width, of an image (default: the encoder's own)",
    )
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images (default: 1)")


def run(args: argparse.Namespace) -> int:
    """Prints a table with one row per part."""
    if args.size is not None and (len(args.size) > 2 or not all(1 <= n <= LARGEST for n in args.size)):
        given = " ".join(map(str, args.size))
        raise UsageError(f"--size takes one or two positive numbers, at most {LARGEST}, got {given}.")
    if not 1 <= args.batch_size <= LARGEST:
        raise UsageError(f"--batch-size {args.batch_size} must be at least 1, at most {LARGEST}.")
    import torch

    from cgspn.backbones.costs import encoder_costs
    from cgspn.ops import library
    from cgspn.registry import BACKBONES

    with torch.device("meta"):
        encoder = BACKBONES.build(node_of(args.model))
    size = tuple(args.size * 2)[:2] if args.size else getattr(encoder, "img_size", (224, 224))
    costs = encoder_costs(encoder, size, args.batch_size)
    images = "1 image" if args.batch_size == 1 else f"{args.batch_size} images"
    print(f"{args.model}: {images} of {size[0]} x {size[1]} pixels, float32\n")
    print(table(costs))
    print("\nMACs: multiply-accumulates of matrix products, attention and line scans in one forward pass.")
    print("Activations: what autograd keeps for the backward pass when every parameter trains.")
    status = library.STATUS["cpu"]
    if not status.active and costs.scan_macs:
        print(f"Activations are those of the plain PyTorch scan, which keeps more: {status.reason}.")
    return 0


def node_of(model: str) -> Any:
    """The config node that a name, a config file, or something with weights stands for.

    Raises:
        ValueError: If it is none of these; the message lists the names.
    """
    from cgspn.backbones.pretrained import find_pretrained
    from cgspn.registry import BACKBONES

    path = Path(model)
    if path.suffix in (".yaml", ".yml"):
        return node_in_config(path)
    if path.exists() and model not in BACKBONES.names():
        if (path / "config.yaml").is_file():
            return node_in_config(path / "config.yaml")
        return find_pretrained(path)[1]
    if len(path.parts) > 1:
        raise UsageError(f"There is no config, run, checkpoint or folder {path}.")
    return BACKBONES.check(model)


def node_in_config(path: Path) -> dict[str, Any]:
    """The checked node of the encoder that a config file trains, or that it consists of."""
    import yaml

    from cgspn.registry import BACKBONES

    if not path.is_file():
        raise UsageError(f"Config file {path} does not exist.")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"Config file {path} is not valid YAML: {error}") from None
    if isinstance(content, dict) and "type" in content:
        return BACKBONES.check(content, str(path))
    model = content.get("model") if isinstance(content, dict) else None
    arguments = {**model, **(model.get("init_args") or {})} if isinstance(model, dict) else {}
    for name in NODE_NAMES:
        if name in arguments:
            return BACKBONES.check(arguments[name], f"{path}: model.{name}")
    raise UsageError(f"Config file {path} has no encoder: neither model.{' nor model.'.join(NODE_NAMES)}.")


def table(costs: EncoderCosts) -> str:
    """Rows by part and a total, columns aligned."""
    total = costs.total
    rows = [COLUMNS]
    for name, cost in [*costs.parts.items(), ("total", total)]:
        rows.append(
            (
                name,
                f"{cost.parameters:,}",
                percent(cost.parameters, total.parameters),
                metric(cost.macs),
                percent(cost.macs, total.macs),
                f"{cost.activation_bytes / 2**20:.1f}",
                percent(cost.activation_bytes, total.activation_bytes),
            )
        )
        if costs.scan_macs and name == list(costs.parts)[-1]:
            share = percent(costs.scan_macs, total.macs)
            rows.append(("(line scans)", "", "", metric(costs.scan_macs), share, "", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def metric(number: int) -> str:
    """A number in millions or billions."""
    return f"{number / 1e9:.2f} G" if number >= 1e9 else f"{number / 1e6:.2f} M"


def percent(part: int, whole: int) -> str:
    """A share as a percentage."""
    return f"{100 * part / whole:.1f} %" if whole else ""
