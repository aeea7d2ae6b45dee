"""Lines that tell how far an export is."""

from __future__ import annotations

import math
import time
from typing import Any

__all__ = ["Progress"]

_FIRST_SECONDS, _GROWTH = 5.0, 1.5


class Progress:
    """Prints the current step of an export from 5 s on, so that short exports are silent.

    Each pause is half of the time so far. With `verbose=True` the end is printed in any case, with
    `verbose=False` nothing.
    """

    def __init__(self, caller: str, verbose: bool | None) -> None:
        self.caller, self._start = caller, time.perf_counter()
        self._next = math.inf if verbose is not None and not verbose else _FIRST_SECONDS
        self._reports_end = bool(verbose)

    def __call__(self, step: str) -> None:
        """Prints the step that begins, if it is time for a line."""
        seconds = time.perf_counter() - self._start
        if seconds >= self._next:
            print(f"{self.caller}, {seconds:.0f} s: {step}", flush=True)
            self._next, self._reports_end = _GROWTH * seconds, True

    def end(self, path: Any) -> None:
        """Prints the path if lines were printed, or with `verbose=True`."""
        if self._reports_end:
            print(f"{self.caller}: wrote {path}.", flush=True)
