"""``cgspn export``: the encoder of a run, without teacher, adapters and training state."""

from __future__ import annotations

import argparse
from pathlib import Path

from cgspn.cli.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("run", metavar="RUN", help="run folder (its last.ckpt is taken) or checkpoint")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for model.safetensors and config.json")
    parser.add_argument(
        "--part", default="encoder", help="which of the checkpoint's encoders (default: encoder)"
    )


def run(args: argparse.Namespace) -> int:
    """Writes the encoder and prints where it came from and where it is."""
    from cgspn.backbones import VisionEncoder
    from cgspn.backbones.pretrained import CONFIG, WEIGHTS, find_pretrained

    for name in (CONFIG, WEIGHTS):
        if (args.out / name).exists():
            raise UsageError(f"{args.out} already holds {name}; choose another folder.")
    file, _ = find_pretrained(args.run, args.part)
    encoder = VisionEncoder.from_pretrained(file, args.part)
    encoder.save_pretrained(args.out)
    count = sum(parameter.numel() for parameter in encoder.parameters())
    size = (args.out / WEIGHTS).stat().st_size / 2**20
    print(f"{args.out}: encoder of {file}, {count:,} parameters, {size:.1f} MiB")
    return 0
