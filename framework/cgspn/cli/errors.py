"""The one rule for errors: the user's are one line on stderr and exit code 2, bugs keep their traceback."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from types import SimpleNamespace

# Their ValueErrors are messages about the input; numpy's or torch's would be a bug of ours.
USER_FACING_PACKAGES = ("cgspn", "jsonargparse", "lightning")
# Which extra brings a package.
EXTRAS = {
    "webdataset": "data",
    "mmseg": "seg",
    "mmcv": "seg",
    "matplotlib": "report",
    "transformers": "transformers",
    "timm": "timm",
    "open_clip": "openclip",
}
STATE_DICT_ERROR = "Error(s) in loading state_dict"
OPTIMIZER_ERROR = "loaded state dict "
WORKER_ERROR = re.compile(r"Caught (\w+) in DataLoader worker")
WORKER_DIED = re.compile(r"DataLoader worker \(pid.*?\) (is killed by signal: \w+|exited unexpectedly)")
# CUDA's is a class of torch's, the CPU's only a text.
OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|unable to mmap", re.I)
UNION_ERROR = "Does not validate against any of the Union subtypes"
REPORT_BUG = "cgspn: this looks like a bug; please report it with the output of `python -m cgspn.env`."
NOISE = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes: |Errors:$|Given value type|NestedArg\("
    r"|- Expected a <class 'NoneType'>|- Expected a path but |Problem with given class_path|Given value: \{"
)
REWORDINGS = (
    (r".*Expected a dot import path string: (\S+).*", r"there is no class \1"),
    (r"unrecognized arguments: --([\w.]+)=\S*$", r"unknown option \1"),
    (r"\.? (?:Got|Given) value: Namespace\(.*", ""),
    (r"\.? (?:Got|Given) value: ", ", got "),
    (r"^Expected an? (?:typing\.)?", "expected "),
    (r" Expected an? ", " or "),
)


class UsageError(ValueError):
    """A mistake on the command line or in a config file."""


class Interrupted(SystemExit):
    """Training stopped by a signal after its state was saved; ``code`` is 128 + the signal's number."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(code)
        self.message = message


@contextlib.contextmanager
def report_errors() -> Iterator[SimpleNamespace]:
    """Turns errors of the user into one line ``cgspn: error: ...`` and the exit code 2.

    Yields:
        An object whose attribute ``code`` is the exit code.

    ``CGSPN_TRACEBACK=1`` shows the traceback as well.
    """
    outcome = SimpleNamespace(code=0)
    try:
        yield outcome
    except Interrupted as interrupt:
        print(f"cgspn: {interrupt.message}", file=sys.stderr)
        outcome.code = interrupt.code
    except KeyboardInterrupt:
        outcome.code = interrupted()
    except SystemExit as leave:
        # How Lightning ends after Ctrl-C.
        if not isinstance(leave.__context__, KeyboardInterrupt):
            raise
        outcome.code = interrupted()
    except BrokenPipeError:
        # Whoever read the output, such as `head`, has enough; Python must not fail on it again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        outcome.code = 128 + signal.SIGPIPE
    except Exception as raised:
        error = unwrapped(raised)
        if not is_users(error):
            raised.add_note(REPORT_BUG)
            raise
        if os.environ.get("CGSPN_TRACEBACK", "0") not in ("", "0"):
            traceback.print_exc()
        print(f"cgspn: error: {one_line(error)}", file=sys.stderr)
        outcome.code = 2


def interrupted() -> int:
    """Says that Ctrl-C ended the command, and returns the exit code."""
    print("cgspn: interrupted.", file=sys.stderr)
    return 128 + signal.SIGINT


def unwrapped(error: Exception) -> Exception:
    """What a constructor raised, without what jsonargparse says about the type of its result."""
    while str(error).startswith(UNION_ERROR) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def is_users(error: BaseException) -> bool:
    """Whether the message of an error says all that its reader needs."""
    if isinstance(error, OSError | UsageError | argparse.ArgumentError | MemoryError):
        return True
    if isinstance(error, RuntimeError) and any(p.search(str(error)) for p in (OUT_OF_MEMORY, WORKER_DIED)):
        return True
    if isinstance(error, ModuleNotFoundError):
        # Lightning names what one of its parts needs.
        return extra_of(error) is not None or raised_in(error).startswith("lightning.")
    if type(error).__name__ == "MisconfigurationException":
        return True
    if isinstance(error, RuntimeError) and str(error).startswith(STATE_DICT_ERROR):
        return True
    if isinstance(error, ValueError) and str(error).startswith(OPTIMIZER_ERROR):
        return True
    if not isinstance(error, ValueError):
        return False
    if WORKER_ERROR.match(str(error)):
        return True
    package = raised_in(error).split(".")[0]
    return package in USER_FACING_PACKAGES or package in plugin_packages()


def raised_in(error: BaseException) -> str:
    """Name of the module that raised an error."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return frames[-1][0].f_globals.get("__name__", "") if frames else ""


def plugin_packages() -> set[str]:
    """Packages that installed plugins live in; their ValueErrors are about the input, like our own."""
    from cgspn.registry import PLUGIN_GROUP

    return {point.module.split(".")[0] for point in importlib.metadata.entry_points(group=PLUGIN_GROUP)}


def one_line(error: BaseException) -> str:
    """The message of an error on one line, without the wrappers that libraries put around it."""
    text = str(error)
    if WORKER_ERROR.match(text):
        return text.strip().splitlines()[-1].partition(": ")[2]
    if isinstance(error, RuntimeError) and (died := WORKER_DIED.search(text)):
        return f"A process that loads data {died[1]}; it may be short of memory: try a smaller num_workers."
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(text)):
        return f"Out of memory: {text.splitlines()[0] if text else 'no more could be allocated'}"
    if isinstance(error, ModuleNotFoundError) and (extra := extra_of(error)):
        return f"{error.name} is not installed; get it with: pip install 'cgspn[{extra}]'"
    if isinstance(error, OSError) and error.strerror:
        files = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return ": ".join([error.strerror, *files])
    if isinstance(error, argparse.ArgumentError):
        return parser_message(error)
    if text.startswith(STATE_DICT_ERROR):
        complaints = [" ".join(line.split()) for line in text.splitlines()[1:]]
        more = f" (and {len(complaints) - 1} more)" if len(complaints) > 1 else ""
        return f"The checkpoint does not fit the model: {complaints[0]:.400}{more}"
    if text.startswith(OPTIMIZER_ERROR):
        return f"The checkpoint's optimizer does not fit what is trained: {text}."
    return " ".join(text.split())


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Makes each warning one line, without the place in the source."""
    usual = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {' '.join(str(message).split())}\n"
    try:
        yield
    finally:
        warnings.formatwarning = usual


def extra_of(error: ModuleNotFoundError) -> str | None:
    """The extra of cgspn that brings the missing module."""
    return EXTRAS.get((error.name or "").partition(".")[0])


def parser_message(error: argparse.ArgumentError) -> str:
    """The innermost complaint of jsonargparse, after the key it is about."""
    path: list[str] = []
    rest: dict[str, None] = {}
    for line in map(str.strip, str(error).splitlines()):
        if match := re.match(r"""(?:- )?Parser key ["'](.+?)["']:\s*(.*)""", line):
            path.append(match[1])
            line = match[2]
        if line and not NOISE.search(line):
            rest[line.removeprefix("- ")] = None
    message = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", " ".join(rest))
    for pattern, replacement in REWORDINGS:
        message = re.sub(pattern, replacement, message)
    return f"{'.'.join(path)}: {message}" if path else message
