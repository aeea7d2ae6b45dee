"""A process with one contender in it, which works when told to.

It reads requests from stdin and writes replies to stdout, one JSON object a line:

```
{"do": "build", "spec": {...}}           -> {"build_seconds", "num_parameters", "resident_mb"}
{"do": "run", "what": "train", "steps": 3}    -> {"seconds", "value", "peak_mb", "resident_mb"}
{"do": "close"}                          -> {}
```

`what` is `train`, `log_prob` or `sample`. The spec is that of `benchmarks.spec.Spec`. Seconds of
building count from after the imports. A reply with `unavailable` or `error` says why there is no
other. Whatever a framework prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from typing import Any, TextIO

from benchmarks.contenders import Contender, NotAvailable, contender_class
from benchmarks.memory import peak_mb, resident_mb
from benchmarks.spec import Spec

__all__ = ["Worker", "main"]


class Worker:
    """Answers requests."""

    def __init__(self) -> None:
        self._contender: Contender | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Returns the reply to a request; errors become replies."""
        try:
            return getattr(self, f"_{request.pop('do')}")(**request)
        except NotAvailable as reason:
            return {"unavailable": str(reason)}
        except Exception as error:
            traceback.print_exc()
            first_line = str(error).strip().split("\n")[0]
            return {"error": f"{type(error).__name__}: {first_line}"}

    def _build(self, spec: dict[str, Any]) -> dict[str, Any]:
        spec = Spec.from_json(spec)
        make = contender_class(spec.contender)
        _set_threads(spec.contender, spec.threads)
        start = time.perf_counter()
        self._contender = make(spec.size, **spec.options)
        return {
            "build_seconds": time.perf_counter() - start,
            "num_parameters": self._contender.num_parameters,
            "resident_mb": resident_mb(),
        }

    def _run(self, what: str, steps: int) -> dict[str, Any]:
        if self._contender is None:
            raise RuntimeError("expected a `build` first")
        start = time.perf_counter()
        result = self._contender.run(what, steps)
        seconds = time.perf_counter() - start
        value = float(result.mean()) if hasattr(result, "mean") else float(result)
        return {
            "seconds": seconds,
            "value": value,
            "peak_mb": peak_mb(),
            "resident_mb": resident_mb(),
        }

    def _close(self) -> dict[str, Any]:
        return {}


def _set_threads(contender: str, threads: int) -> None:
    if contender == "pytorch":
        import torch

        torch.set_num_threads(threads)
    else:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)


def main(requests: TextIO, replies: TextIO) -> None:
    """Answers requests until told to close, or until there are no more."""
    worker = Worker()
    for line in requests:
        request = json.loads(line)
        is_last = request["do"] == "close"
        replies.write(json.dumps(worker.answer(request)) + "\n")
        replies.flush()
        if is_last:
            break


if __name__ == "__main__":
    # Replies get the only handle of the real stdout; what libraries print joins stderr.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    main(sys.stdin, replies)
