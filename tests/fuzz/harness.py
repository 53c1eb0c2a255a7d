"""What every fuzzed call has to do: return, or refuse in one line of ours, and soon."""

import contextlib
import io
import linecache
import signal
import threading
import traceback

from hypothesis import HealthCheck, settings

from cgspn.cli import main

SECONDS = 30
PREFIX = "cgspn: error: "
REFUSED = object()


def examples(number):
    """Settings of a fuzz test: the same ``number`` of examples in every run."""
    return settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def watched():
    """Raises TimeoutError after ``SECONDS``, where signals can do that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(*_):
        raise TimeoutError(f"no answer within {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(function, *arguments, **keywords):
    """What a public function returns, or ``REFUSED`` after an error that a person can act on."""
    with watched():
        try:
            return function(*arguments, **keywords)
        except TimeoutError:
            raise
        except Exception as error:
            if not is_ours(error):
                raise
            return REFUSED


def is_ours(error):
    """Whether code of this project raised the error on purpose, with one line to read."""
    if not isinstance(error, ValueError | OSError) or not str(error).strip() or "\n" in str(error):
        return False
    frame, line = list(traceback.walk_tb(error.__traceback__))[-1]
    statement = linecache.getline(frame.f_code.co_filename, line).strip()
    ours = frame.f_globals.get("__name__", "").startswith("cgspn")
    return isinstance(error, OSError) or (ours and statement.startswith("raise"))


def run(*arguments):
    """Runs the command line and returns its output, or ``REFUSED`` after one line of error."""
    out, err = io.StringIO(), io.StringIO()
    with watched(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as leave:
            code = leave.code or 0
    assert code in (0, 2), (code, arguments, err.getvalue())
    lines = [line for line in err.getvalue().splitlines() if line.startswith("cgspn:")]
    assert "Traceback" not in err.getvalue(), arguments
    if code == 0:
        assert not lines, (arguments, lines)
        return out.getvalue()
    assert len(lines) == 1, (arguments, err.getvalue())
    assert lines[0].startswith(PREFIX), (arguments, lines)
    assert len(lines[0]) > len(PREFIX) + 5, (arguments, lines)
    return REFUSED
