"""Describes the machine and the versions of packages, on Linux only.

`python -m benchmarks.machine` prints the rate of a matrix product, GFLOP/s by dtype, as JSON.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import time
from typing import Any

__all__ = ["ROOT", "bfloat16_pays", "cpu_name", "describe_machine", "matrix_rates", "num_cores"]

ROOT = pathlib.Path(__file__).resolve().parent.parent
_PACKAGES = ("tensorflow", "tensorflow-probability", "keras", "torch")


def num_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_name() -> str:
    """Returns the name of the processor."""
    cpu = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return cpu[1] if cpu else platform.machine()


def describe_machine(threads: int) -> dict[str, Any]:
    """Returns properties of the machine and versions of packages that affect results."""
    installed = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    return {
        "cpu": cpu_name(),
        "cores": num_cores(),
        "threads": threads,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "python": platform.python_version(),
        **{package: installed.get(package, "not installed") for package in _PACKAGES},
        "matrix_gflops": matrix_rates(),
    }


def matrix_rates() -> dict[str, float]:
    """Returns GFLOP/s of a matrix product in float32 and bfloat16; no contender can be faster.

    A separate process measures the rate, so that the caller does not import TensorFlow.
    """
    command = [sys.executable, "-m", "benchmarks.machine"]
    program = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(program.stdout.splitlines()[-1])


def bfloat16_pays(rates: dict[str, float]) -> bool:
    """Returns whether bfloat16 is likely to save time, given the result of `matrix_rates`.

    On processors without bfloat16 instructions, convolutions in bfloat16 are ten times slower than
    in float32. Some processors with bfloat16 instructions do not gain from bfloat16 either.
    """
    return rates["bfloat16"] > 1.2 * rates["float32"]


def _measure_matrix_rates(side: int = 2048, rounds: int = 5) -> dict[str, float]:
    import tensorflow as tf

    square = tf.function(lambda matrix: matrix @ matrix)
    rates = {}
    for dtype in (tf.float32, tf.bfloat16):
        matrix = tf.cast(tf.random.normal([side, side]), dtype)
        square(matrix)
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            square(matrix).numpy()
            seconds.append(time.perf_counter() - start)
        rates[dtype.name] = 2 * side**3 / statistics.median(seconds) / 1e9
    return rates


if __name__ == "__main__":
    print(json.dumps(_measure_matrix_rates()))
