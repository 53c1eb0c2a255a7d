"""``cgspn features``: the summary and the dense features of every picture of a folder, in one file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgspn.cli.errors import UsageError
from cgspn.cli.feature_files import WRITERS, FeatureWriter

if TYPE_CHECKING:
    from torch import Tensor, device, nn

NATIVE = "native"
# The largest side of a JPEG.
LARGEST = 65535


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("images", metavar="IMAGES", help="folder of pictures, at any depth, or one picture")
    parser.add_argument(
        "--model", required=True, help="folder of save_pretrained, run folder (last.ckpt) or checkpoint"
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help=f"new file, {' or '.join(WRITERS)}"
    )
    parser.add_argument(
        "--size",
        nargs="+",
        metavar="PIXELS",
        help="side, or height and width: pictures are scaled to cover it and their centre is taken; "
        f"'{NATIVE}' leaves them as they are (default: the encoder's own size)",
    )
    parser.add_argument("--summary-only", action="store_true", help="leave the dense features out")
    parser.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="pictures at once (default: 16)"
    )
    parser.add_argument(
        "--num-workers", type=int, default=2, metavar="N", help="processes that load (default: 2)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")


def run(args: argparse.Namespace) -> int:
    """Writes the file and says what is in it; after Ctrl-C it holds what was computed."""
    size = parse_size(args.size)
    if args.out.suffix not in WRITERS:
        raise UsageError(
            f"--out {args.out}: unknown suffix {args.out.suffix!r}; valid: {', '.join(WRITERS)}."
        )
    if args.out.exists():
        raise UsageError(f"--out {args.out} exists already; choose another file.")
    if args.batch_size < 1 or args.num_workers < 0:
        raise UsageError(
            f"--batch-size {args.batch_size} must be at least 1, --num-workers {args.num_workers} at least 0."
        )
    from cgspn.backbones.pretrained import read_pretrained, restore
    from cgspn.data.bad_samples import BadSamples
    from cgspn.data.folder import find_images

    paths = find_images(args.images)
    root = Path(args.images)
    names = [path.relative_to(root).as_posix() if root.is_dir() else path.name for path in paths]
    where = device_of(args.device)
    encoder: Any = restore(read_pretrained(args.model)).to(where)
    size = getattr(encoder, "img_size", NATIVE) if size is None else size
    bad, stopped = BadSamples(), False
    with WRITERS[args.out.suffix](args.out) as writer:
        try:
            pictures = load(paths, encoder, size, args.num_workers)
            for indices, images in batches(pictures, names, args.batch_size, bad):
                encode(encoder, images.to(where), [names[i] for i in indices], writer, not args.summary_only)
        except KeyboardInterrupt:
            stopped = True
        if not writer.names:
            raise UsageError(
                f"None of the {len(paths)} pictures in {args.images} was encoded; nothing is written."
            )
    left_out = f"; {bad.count} could not be read" if bad.count else ""
    print(f"{args.out}: {len(writer.names)} of {len(paths)} pictures, {writer.contents}{left_out}")
    return 130 if stopped else 0


def parse_size(words: Sequence[str] | None) -> tuple[int, int] | str | None:
    """Height and width, ``native``, or None where nothing is given."""
    if words is None:
        return None
    if list(words) == [NATIVE]:
        return NATIVE
    if len(words) > 2 or not all(word.isdecimal() and 0 < int(word) <= LARGEST for word in words):
        given = " ".join(words)
        raise UsageError(
            f"--size takes one or two positive numbers, at most {LARGEST}, or '{NATIVE}', got {given}."
        )
    return int(words[0]), int(words[-1])


def device_of(name: str | None) -> device:
    """The torch device called ``name``.

    Raises:
        UsageError: If there is none.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=name).cpu()
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return torch.device(name)


class Pictures:
    """A data set of pictures: the input (3, H, W) of each, or why it cannot be read."""

    def __init__(self, paths: Sequence[Path], encoder: nn.Module, size: tuple[int, int] | str) -> None:
        self.paths, self.size = paths, size
        self.mean, self.std = tuple(encoder.mean), tuple(encoder.std)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor | str:
        from PIL import Image

        from cgspn.data.transforms import ImageTransform

        try:
            with Image.open(self.paths[index]) as image:
                size = (image.height, image.width) if self.size == NATIVE else self.size
                return ImageTransform(size, self.mean, self.std)(image)  # type: ignore[arg-type]
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            return str(error) or type(error).__name__


def load(
    paths: Sequence[Path], encoder: nn.Module, size: tuple[int, int] | str, num_workers: int
) -> Iterator[Tensor | str]:
    """Inputs in the order of ``paths``, loaded ahead by ``num_workers`` processes."""
    from torch.utils.data import DataLoader

    dataset: Any = Pictures(paths, encoder, size)
    yield from DataLoader(dataset, batch_size=None, num_workers=min(num_workers, len(paths) - 1))


def batches(
    pictures: Iterator[Tensor | str], names: Sequence[str], batch_size: int, bad: Any
) -> Iterator[tuple[list[int], Tensor]]:
    """Neighbouring pictures of one size, up to ``batch_size`` of them, under a progress bar."""
    import torch
    from rich.console import Console
    from rich.progress import track

    indices: list[int] = []
    images: list[Tensor] = []
    console = Console(stderr=True)
    progress = track(
        pictures, "encoding", len(names), console=console, transient=True, disable=not console.is_terminal
    )
    for index, picture in enumerate(progress):
        if isinstance(picture, str):
            bad.add(names[index], picture)
            continue
        if images and (len(images) == batch_size or images[0].shape != picture.shape):
            yield indices, torch.stack(images)
            indices, images = [], []
        indices.append(index)
        images.append(picture)
    if images:
        yield indices, torch.stack(images)


def encode(encoder: Any, images: Tensor, names: Sequence[str], writer: FeatureWriter, dense: bool) -> None:
    """Runs the encoder on one batch and hands the results to the writer, as float32."""
    import torch

    dtype = next((parameter.dtype for parameter in encoder.parameters()), torch.float32)
    with torch.inference_mode():
        output = encoder.encode(images.to(dtype))
    summary, features = output.summary.float().cpu().numpy(), output.features.float().cpu().numpy()
    for row, name in enumerate(names):
        writer.add(name, summary[row], features[row] if dense else None)
