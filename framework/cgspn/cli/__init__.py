"""The command line: ``cgspn COMMAND ...``.

This module stays free of torch, so that help, version and light commands start at once.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import cgspn
from cgspn.cli.errors import UsageError, plain_warnings, report_errors
from cgspn.errors import unknown_name


class Command(NamedTuple):
    """What a command does, and the module whose ``add_arguments`` and ``run`` implement it."""

    summary: str
    module: str


TRAINER_COMMANDS = {
    "fit": "Train a model; resume one with --ckpt_path",
    "validate": "Evaluate a checkpoint on the validation split",
    "test": "Evaluate a checkpoint on the test split",
    "predict": "Write predictions of a checkpoint",
}
COMMANDS = {
    "list": Command("Show what configs can name, and the arguments of an entry", "cgspn.cli.listing"),
    "info": Command("Show an encoder's parameters, MACs and activation memory", "cgspn.cli.info"),
    "export": Command("Write the encoder of a run, ready for from_pretrained", "cgspn.cli.export"),
    "features": Command("Write summaries and features of pictures", "cgspn.cli.features"),
    "scenes": Command(
        "Draw labelled, captioned scenes as an ADE20K folder or as shards", "cgspn.data.scenes.command"
    ),
    "report": Command(
        "Put several runs side by side, as Markdown and one HTML page", "cgspn.reports.command"
    ),
}
EPILOG = """\
examples:
  cgspn fit -c configs/demo/stage1.yaml --trainer.max_epochs 5
  cgspn fit -c configs/demo/stage1.yaml --model.student.operator gspn2 --run.name gspn2
  cgspn test -c runs/demo/stage1/0/config.yaml --ckpt_path runs/demo/stage1/0/checkpoints/last.ckpt
  cgspn features pictures --model runs/demo/stage2/latest --out features.npz

Each run gets its own folder runs/<name>/<n>. CGSPN_TRACEBACK=1 shows the traceback behind an error.
"""


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are errors like all others."""

    def error(self, message: str) -> NoReturn:
        """Raises UsageError."""
        raise UsageError(f"{message} ({self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0, or 2 after a one-line error.

    Args:
        argv: Arguments after the program's name; None means those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with plain_warnings(), report_errors() as outcome:
        outcome.code = dispatch(arguments)
    return outcome.code


def dispatch(arguments: list[str]) -> int:
    """Runs the command that ``arguments`` names and returns its exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(help_page())
        return 0
    if arguments[0] == "--version":
        print(f"cgspn {cgspn.__version__}")
        return 0
    name, *rest = arguments
    if name in TRAINER_COMMANDS:
        from cgspn.cli.trainer import run_trainer

        return run_trainer(name, rest)
    if name not in COMMANDS:
        raise UsageError(unknown_name("command", name, [*TRAINER_COMMANDS, *COMMANDS]))
    module = importlib.import_module(COMMANDS[name].module)
    parser = Parser(f"cgspn {name}", description=COMMANDS[name].summary + ".")
    module.add_arguments(parser)
    # As a path it would mean the current folder; it comes from a shell variable that is not set.
    if empty := [position for position, argument in enumerate(rest, 1) if not argument]:
        raise UsageError(f"Argument {empty[0]} is empty ({parser.prog} --help).")
    return module.run(parser.parse_args(rest)) or 0


def help_page() -> str:
    """What ``cgspn --help`` prints."""
    summaries = TRAINER_COMMANDS | {name: command.summary for name, command in COMMANDS.items()}
    lines = [
        "usage: cgspn [-h] [--version] COMMAND ...",
        "",
        cgspn.__doc__ or "",
        "",
        "commands (cgspn COMMAND --help shows the options of one):",
        *(f"  {name:<10}{summary}" for name, summary in summaries.items()),
        "",
        EPILOG.rstrip(),
    ]
    return "\n".join(lines)
