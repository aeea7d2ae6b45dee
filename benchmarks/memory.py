"""Memory of this process, by the kernel's count."""

from __future__ import annotations

import pathlib
import resource

__all__ = ["peak_mb", "resident_mb"]

_STATUS = pathlib.Path("/proc/self/status")


def peak_mb() -> float:
    """Returns the most memory that the process has had resident so far, in MB (10⁶ bytes)."""
    kilobytes = _status_field("VmHWM")
    if kilobytes is None:
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * 1024 / 1e6


def resident_mb() -> float:
    """Returns the memory that the process has resident now, in MB; its peak where unknown."""
    kilobytes = _status_field("VmRSS")
    return peak_mb() if kilobytes is None else kilobytes * 1024 / 1e6


def _status_field(name: str) -> int | None:
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    return None
