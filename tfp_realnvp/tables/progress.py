"""Progress messages of a fit."""

from __future__ import annotations

import math
import time
from typing import Any

_FIRST_SECONDS, _GROWTH = 5.0, 1.5


class Progress:
    """Prints progress lines with the seconds since the start.

    With `verbose='auto'`, the first line appears after 5 s, and each later line after 1.5 times
    the time of the last one: short fits print nothing, and fits of hours print few lines.
    """

    def __init__(self, verbose: Any) -> None:
        self._start = time.perf_counter()
        self._is_auto = verbose == "auto"
        self._next = _FIRST_SECONDS if self._is_auto else 0.0 if verbose else math.inf

    def __call__(self, line: str) -> None:
        """Prints a line, unless the last one was too recent."""
        seconds = time.perf_counter() - self._start
        if seconds >= self._next:
            print(f"{seconds:.0f} s: {line}", flush=True)
            self._next = _GROWTH * seconds if self._is_auto else 0.0
