"""The driver's end of a worker."""

from __future__ import annotations

import json
import pathlib
import selectors
import signal
import subprocess
import sys
from typing import IO, Any

from benchmarks.contenders.contender import NotAvailable
from benchmarks.spec import Spec

__all__ = ["WorkerError", "WorkerProcess"]

_ROOT = pathlib.Path(__file__).resolve().parent.parent


class WorkerError(Exception):
    """A worker failed, or did not answer in time; the message says how."""


class WorkerProcess:
    """A process that runs `benchmarks.worker`; used as a context manager, it is ended at the end.

    Between requests it is stopped: threads of its framework that have nothing to do would wait
    busily for a while, at the expense of the other contender.

    #### Example

    ```
    with WorkerProcess() as worker:
        worker.build(Spec('ours', SIZES['small']))
        seconds = worker.run('train', steps=3)['seconds']
    ```
    """

    def __init__(self, log: IO[str] | None = None, timeout: float = 1800.0) -> None:
        """Starts the process.

        Args:
          log: gets all that the worker and its framework print; `None` drops it.
          timeout: seconds that an answer may take.
        """
        self._timeout = timeout
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if log is None else log,
            text=True,
        )

    def build(self, spec: Spec) -> dict[str, Any]:
        """Builds a contender; see `benchmarks.worker` for the reply."""
        return self._ask({"do": "build", "spec": spec.to_json()})

    def run(self, what: str, steps: int) -> dict[str, Any]:
        """Runs `train`, `log_prob` or `sample`; see `benchmarks.worker` for the reply."""
        return self._ask({"do": "run", "what": what, "steps": steps})

    def close(self) -> None:
        """Ends the process."""
        self._signal("SIGCONT")
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            # At the end of its requests it ends by itself.
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self._signal("SIGCONT")
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return self._failed()
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(self._timeout):
                # Still at work: it would not see the end of its requests.
                self._process.kill()
                raise WorkerError(f"no answer within {self._timeout:g} s")
        line = self._process.stdout.readline()
        if not line:
            return self._failed()
        self._signal("SIGSTOP")
        reply = json.loads(line)
        if "unavailable" in reply:
            raise NotAvailable(reply["unavailable"])
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply

    def _signal(self, name: str) -> None:
        if hasattr(signal, name) and self._process.poll() is None:
            self._process.send_signal(getattr(signal, name))

    def _failed(self) -> dict[str, Any]:
        raise WorkerError(f"the process ended with exit code {self._process.wait()}")
