"""Runs one contender in a process, which answers requests.

The argument is a JSON object: `contender`, `options`, `size` (a key of `SIZES`), `threads` and
`checkout`, the folder with the package to measure (`null` for the package in this checkout). The
process builds the contender and writes one reply, then one reply to each request from stdin.
Requests and replies are JSON objects, one per line:

```
                               -> {"build_seconds", "num_parameters", "resident_mb"}
{"what": "train", "steps": 3}  -> {"seconds", "value", "peak_mb", "resident_mb"}
```

The process ends after a reply {"error": ...}. Output of frameworks goes to stderr.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

from benchmarks.contenders import contender_class
from benchmarks.sizes import SIZES


def _replies(
    contender: str, options: dict[str, Any], size: str, threads: int, checkout: str | None
) -> Iterator[dict[str, Any]]:
    if checkout is not None:
        # Only `tfp_realnvp` comes from `checkout`: `benchmarks` is already imported.
        sys.path.insert(0, checkout)
    make = contender_class(contender)
    _set_threads(contender, threads)
    start = time.perf_counter()
    model = make(SIZES[size], **options)
    yield {
        "build_seconds": time.perf_counter() - start,
        "num_parameters": model.num_parameters,
        "resident_mb": _memory_mb("VmRSS"),
    }
    for line in sys.stdin:
        start = time.perf_counter()
        value = model.run(**json.loads(line))
        yield {
            "seconds": time.perf_counter() - start,
            "value": value,
            "peak_mb": _memory_mb("VmHWM"),
            "resident_mb": _memory_mb("VmRSS"),
        }


def _set_threads(contender: str, threads: int) -> None:
    if contender == "pytorch":
        import torch

        torch.set_num_threads(threads)
    else:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)


def _memory_mb(field: str) -> float:
    """Returns a memory size from the Linux kernel's status of this process, in 10⁶ bytes."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s*(\d+) kB", status)[1]) * 1024 / 1e6


def _main() -> None:
    # Only replies go to the real stdout; libraries print to stderr.
    stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        for reply in _replies(**json.loads(sys.argv[1])):
            print(json.dumps(reply), file=stdout, flush=True)
    except Exception as error:
        traceback.print_exc()
        message = f"{type(error).__name__}: {str(error).strip()}".split("\n")[0]
        print(json.dumps({"error": message}), file=stdout, flush=True)


if __name__ == "__main__":
    _main()
