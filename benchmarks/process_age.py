"""How long this process has been running, imports and all."""

import os
import pathlib
import time

__all__ = ["process_age"]

_IMPORTED = time.monotonic()


def process_age() -> float:
    """Returns seconds since the process started; since this module's import where unknown."""
    stat, uptime = pathlib.Path("/proc/self/stat"), pathlib.Path("/proc/uptime")
    if not (stat.exists() and uptime.exists()):
        return time.monotonic() - _IMPORTED
    # The program's name, in brackets, may hold spaces; the 22nd field is the start in ticks.
    start = int(stat.read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return float(uptime.read_text().split()[0]) - start
