"""The machine and the versions that a result belongs to."""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import platform
import subprocess
import sys
import time
from typing import Any

from benchmarks.spec import num_cores

__all__ = ["busy_cores", "describe_machine"]

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_PACKAGES = ("tensorflow", "tensorflow-probability", "keras", "tf-keras", "torch")


def describe_machine(threads: int) -> dict[str, Any]:
    """Returns what a result depends on beside the code.

    Args:
      threads: that each contender's framework is given.
    """
    return {
        "cpu": _cpu_model(),
        "cores": num_cores(),
        "threads": threads,
        "memory_gb": _memory_gb(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
        "matrix_gflops": _matrix_rates(),
    }


def busy_cores(seconds: float = 1.0) -> float | None:
    """Returns how many cores others keep busy while this process waits; `None` where unknown.

    What else runs on the machine falsifies a comparison, and does not do so evenly: OpenMP
    threads, which PyTorch has, wait for each other at every operation.
    """
    before = _idle_and_total()
    if before is None:
        return None
    time.sleep(seconds)
    idle, total = (b - a for a, b in zip(before, _idle_and_total(), strict=True))
    return round(num_cores() * max(0.0, 1 - idle / max(total, 1)), 2)


def _idle_and_total() -> tuple[int, int] | None:
    path = pathlib.Path("/proc/stat")
    if not path.exists():
        return None
    # user, nice, system, idle, iowait, …
    times = [int(field) for field in path.read_text().split("\n")[0].split()[1:9]]
    return times[3] + times[4], sum(times)


def _cpu_model() -> str:
    return _field("/proc/cpuinfo", "model name") or platform.processor() or "unknown"


def _memory_gb() -> float | None:
    kilobytes = _field("/proc/meminfo", "MemTotal")
    return round(int(kilobytes.split()[0]) * 1024 / 1e9, 1) if kilobytes else None


def _field(path: str, name: str) -> str | None:
    if not pathlib.Path(path).exists():
        return None
    for line in pathlib.Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _matrix_rates() -> dict[str, float]:
    # In a process of its own, as the contenders are.
    program = subprocess.run(
        [sys.executable, "-m", "benchmarks.matrix_rate"],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(program.stdout.splitlines()[-1])
