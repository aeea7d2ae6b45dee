"""Compares two contenders in two processes, which run the same operation in turns."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import IO, Any

from benchmarks.machine import ROOT
from benchmarks.sizes import SIZES

__all__ = ["WorkerError", "WorkerProcess", "compare", "take_turns"]


class WorkerError(Exception):
    """A worker failed; the message gives the reason."""


class WorkerProcess(contextlib.AbstractContextManager):
    """Starts a `benchmarks.worker` process and sends requests; see that module for `spec`.

    Between requests, a signal (`SIGSTOP`) pauses the process. Otherwise idle threads of the
    framework would spin and slow down the other contender.

    #### Example

    ```
    with WorkerProcess({"size": "small", "threads": 2, **parse_row("ours-f32")}) as worker:
        seconds = worker.run("train", steps=3)["seconds"]
    ```

    Attributes:
      built: the worker's first reply.
    """

    def __init__(self, spec: dict[str, Any], log: IO[str] | None = None) -> None:
        """Waits until the contender is built; `log` receives what the worker prints.

        Raises:
          WorkerError: if the contender cannot be built.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps(spec)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if log is None else log,
            text=True,
        )
        with contextlib.ExitStack() as on_error:
            on_error.push(self)
            self.built = self._receive()
            on_error.pop_all()

    def run(self, what: str, steps: int) -> dict[str, Any]:
        """Runs `train`, `log_prob` or `sample`; returns the reply, see `benchmarks.worker`."""
        self._process.send_signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):  # `_receive` reports a process that has ended
            self._process.stdin.write(json.dumps({"what": what, "steps": steps}) + "\n")
            self._process.stdin.flush()
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"the process ended with exit code {self._process.wait()}")
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(reply["error"])
        self._process.send_signal(signal.SIGSTOP)
        return reply

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()


def compare(
    specs: Sequence[dict[str, Any]],
    what: str,
    *,
    rounds: int,
    round_seconds: float,
    log: IO[str] | None = None,
) -> dict[str, Any]:
    """Measures two contenders in two processes; only one of them works at a time.

    Each process builds its contender, makes a first step, and then a warm-up step. After that, the
    processes take `rounds` turns of about `round_seconds` each.

    Returns:
      `ratios`: for each turn, seconds of the second / seconds of the first; `ratio`: their median;
      `sides`: for each contender `images_per_second` (median over turns), `first_step_seconds`
      (from after the imports to the end of the first step), `built_mb` and `first_step_mb` (memory
      after building and after the first step), `peak_mb`, `num_parameters` and `is_finite`.

    Raises:
      WorkerError: if a worker fails.
    """
    with contextlib.ExitStack() as stack:
        workers, first_steps, warm_seconds = [], [], []
        for spec in specs:
            workers.append(stack.enter_context(WorkerProcess(spec, log)))
            first_steps.append(workers[-1].run(what, steps=1))
            warm_seconds.append(workers[-1].run(what, steps=1)["seconds"])
        steps = max(1, round(round_seconds / max(warm_seconds)))
        turns = take_turns(workers, what, rounds, steps)
    sides = []
    for spec, worker, first_step, replies in zip(specs, workers, first_steps, turns, strict=True):
        images = SIZES[spec["size"]].batch_size * steps
        side = {
            "images_per_second": images / statistics.median(reply["seconds"] for reply in replies),
            "first_step_seconds": worker.built["build_seconds"] + first_step["seconds"],
            "built_mb": worker.built["resident_mb"],
            "first_step_mb": first_step["resident_mb"],
            "peak_mb": replies[-1]["peak_mb"],
            "num_parameters": worker.built["num_parameters"],
            "is_finite": all(math.isfinite(reply["value"]) for reply in replies),
        }
        sides.append(side)
    ratios = [second["seconds"] / first["seconds"] for first, second in zip(*turns, strict=True)]
    return {"ratio": statistics.median(ratios), "ratios": ratios, "sides": sides}


def take_turns(
    workers: Sequence[WorkerProcess], what: str, rounds: int, steps: int
) -> list[list[dict[str, Any]]]:
    """Runs the workers in turns; returns a list for each worker, with a reply for each turn.

    A turn starts with an untimed step, which brings the worker's data into the caches.
    """
    replies = [[] for _ in workers]
    for _ in range(rounds):
        for worker, own in zip(workers, replies, strict=True):
            worker.run(what, steps=1)
            own.append(worker.run(what, steps))
    return replies
