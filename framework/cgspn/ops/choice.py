"""Whether a fused kernel runs where it can: chosen automatically, forced or forbidden by name."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import torch

MODES = ("auto", "fused", "unfused")

_logger = logging.getLogger("cgspn")


class Choice:
    """The mode of one family of fused kernels, from an environment variable, and the log of what it led to.

    Args:
        name: What the log calls the family.
        variable: The environment variable: ``auto`` (fused where that can run), ``fused`` (an error where it
            cannot) or ``unfused``.

    Raises:
        ValueError: If the variable holds another word.
    """

    def __init__(self, name: str, variable: str) -> None:
        self.name = name
        self.variable = variable
        self.mode = self.checked(os.environ.get(variable, "auto"))
        self.logged: set[str] = set()

    def checked(self, mode: str) -> str:
        """The mode, if it is one."""
        if mode not in MODES:
            raise ValueError(f"{self.variable}={mode} is unknown; valid: {', '.join(MODES)}.")
        return mode

    @contextlib.contextmanager
    def using(self, mode: str) -> Iterator[None]:
        """Chooses another mode inside a ``with`` block."""
        before, self.mode = self.mode, self.checked(mode)
        try:
            yield
        finally:
            self.mode = before

    def fused(self, obstacle: str) -> bool:
        """Whether the fused kernel runs; ``obstacle`` is why it cannot, empty if it can.

        Raises:
            RuntimeError: If it is forced and cannot run.
        """
        if obstacle and self.mode == "fused":
            raise RuntimeError(f"{self.variable}=fused, but {obstacle}.")
        chosen = not obstacle and self.mode != "unfused"
        if not torch.compiler.is_compiling():
            self._log_once("fused" if chosen else f"unfused: {obstacle or f'{self.variable} says so'}")
        return chosen

    def report(self, conditions: str) -> str:
        """What the mode means on this machine, for ``python -m cgspn.env``."""
        if self.mode != "auto":
            return f"{self.mode} ({self.variable})"
        return f"auto: fused on {conditions}; else unfused"

    def _log_once(self, outcome: str) -> None:
        if outcome not in self.logged:
            self.logged.add(outcome)
            _logger.info("%s runs %s", self.name, outcome)
