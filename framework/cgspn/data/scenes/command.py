"""The command ``cgspn scenes``."""

from __future__ import annotations

import argparse

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cgspn.data.scenes.writer import write_ade20k, write_shards


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``cgspn scenes``."""
    parser.add_argument("out", help="folder to make")
    parser.add_argument(
        "--format",
        choices=("ade20k", "shards"),
        default="ade20k",
        help="ADE20K folder or webdataset shards (default: ade20k)",
    )
    parser.add_argument("--num", type=int, default=2000, help="training scenes (default: 2000)")
    parser.add_argument("--num-val", type=int, default=200, help="validation scenes (default: 200)")
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        default=[64],
        metavar="PIXELS",
        help="side, or height and width (default: 64)",
    )
    parser.add_argument("--seed", type=int, default=0, help="series of scenes (default: 0)")
    parser.add_argument("--shard-size", type=int, default=500, help="samples in a shard (default: 500)")
    parser.add_argument("--num-workers", type=int, help="processes that draw (default: one for each CPU)")


def run(args: argparse.Namespace) -> int:
    """Draws and writes scenes, with a progress bar, unless they are there already."""
    if len(args.size) > 2:
        raise ValueError(f"--size takes one or two numbers, got {' '.join(map(str, args.size))}.")
    size = (args.size[0], args.size[-1])
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task("drawing scenes", total=args.num + args.num_val)

        def advance(count: int) -> None:
            progress.advance(task, count)

        if args.format == "shards":
            written = write_shards(
                args.out, args.num, args.num_val, size, args.seed, args.shard_size, args.num_workers, advance
            )
        else:
            written = write_ade20k(
                args.out, args.num, args.num_val, size, args.seed, args.num_workers, advance
            )
        if not written:
            progress.update(task, visible=False)
    number = (
        f"{args.num} training and {args.num_val} validation scenes, {size[0]} x {size[1]}, seed {args.seed}"
    )
    print(f"{args.out}: {number}{'' if written else ' (already there)'}")
    return 0
