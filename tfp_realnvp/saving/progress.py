"""Progress messages of an export."""

from __future__ import annotations

import math
import time
from typing import Any

__all__ = ["Progress"]

_FIRST_SECONDS, _GROWTH = 5.0, 1.5


class Progress:
    """Prints the current step of exports that take more than 5 s.

    Each pause is half of the elapsed time. `verbose=True` always prints the end, and
    `verbose=False` prints nothing.
    """

    def __init__(self, caller: str, verbose: bool | None) -> None:
        self.caller, self._start = caller, time.perf_counter()
        self._next = math.inf if verbose is not None and not verbose else _FIRST_SECONDS
        self._reports_end = bool(verbose)

    def __call__(self, step: str) -> None:
        """Prints the next step if enough time has passed."""
        seconds = time.perf_counter() - self._start
        if seconds >= self._next:
            print(f"{self.caller}, {seconds:.0f} s: {step}", flush=True)
            self._next, self._reports_end = _GROWTH * seconds, True

    def end(self, path: Any) -> None:
        """Prints the path if lines were printed, or with `verbose=True`."""
        if self._reports_end:
            print(f"{self.caller}: wrote {path}.", flush=True)
