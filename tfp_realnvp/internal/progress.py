"""Progress lines of calls that can take long."""

import math
import time
from typing import Any

_FIRST_SECONDS, _GROWTH = 5.0, 1.5


class Progress:
    """Prints progress lines with the seconds since the start.

    With `verbose` of `None` or `'auto'`, the first line appears after 5 s, and each later line
    after 1.5 times the time of the last one: short calls print nothing, and calls of hours print
    few lines. Otherwise, a true `verbose` prints all lines, and a false one prints nothing.
    """

    def __init__(self, caller: str, verbose: Any) -> None:
        self.caller, self._start, self._has_printed = caller, time.perf_counter(), False
        self._is_auto = verbose in (None, "auto")
        self._next = _FIRST_SECONDS if self._is_auto else 0.0 if verbose else math.inf

    def __call__(self, line: str) -> None:
        """Prints a line, unless the last one was too recent."""
        seconds = time.perf_counter() - self._start
        if seconds >= self._next:
            caller = f"{self.caller}, " if self.caller else ""
            print(f"{caller}{seconds:.0f} s: {line}", flush=True)
            self._next, self._has_printed = _GROWTH * seconds if self._is_auto else 0.0, True

    def end(self, path: Any) -> None:
        """Prints the path of a written file if other lines were printed."""
        if self._has_printed:
            print(f"{self.caller}: wrote {path}.", flush=True)
