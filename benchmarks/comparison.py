"""Two contenders at the same work, in turns."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
from typing import IO, Any, Protocol

from benchmarks.spec import Spec
from benchmarks.worker_process import WorkerProcess

__all__ = ["Measurement", "Side", "compare", "interleave", "median_ratio"]


class Runner(Protocol):
    """What takes turns; a `WorkerProcess` is one."""

    def run(self, what: str, steps: int) -> dict[str, Any]:
        """Works; the reply has `seconds`."""


@dataclasses.dataclass
class Side:
    """What one contender did.

    Attributes:
      step_seconds: by round.
      images_per_second: the median over rounds.
      build_seconds: to build the model, from after the imports.
      first_step_seconds: from after the imports to the end of the first step.
      built_mb: resident after building the model.
      traced_mb: resident after the first step, which traces and compiles.
      peak_mb: the most that was resident, in the whole life of the process.
      num_parameters: trainable numbers.
      is_finite: whether all losses, densities or samples were finite.
    """

    step_seconds: list[float]
    images_per_second: float
    build_seconds: float
    first_step_seconds: float
    built_mb: float
    traced_mb: float
    peak_mb: float
    num_parameters: int
    is_finite: bool


@dataclasses.dataclass
class Measurement:
    """Two sides, and the speed of the first as a multiple of the second's.

    Attributes:
      what: `train`, `log_prob` or `sample`.
      first: one contender.
      second: the other.
      ratios: by round.
      ratio: their median.
    """

    what: str
    first: Side
    second: Side
    ratios: list[float]
    ratio: float


def compare(
    first: Spec,
    second: Spec,
    what: str | tuple[str, str],
    *,
    rounds: int,
    round_seconds: float,
    timeout: float = 1800.0,
    log: IO[str] | None = None,
) -> Measurement:
    """Measures two contenders in a pair of processes, only one of which works at a time.

    Both build, make their first step, and a second one to warm up, one after the other. Then they
    take turns.

    Args:
      first: one contender.
      second: the other.
      what: `train`, `log_prob` or `sample`; two of them if the sides differ.
      rounds: number of turns of each.
      round_seconds: about how long a turn is to last; it has one step at least.
      timeout: seconds that a turn may take.
      log: gets what the workers print.

    Raises:
      NotAvailable: if a contender cannot be built here.
      WorkerError: if a worker fails.
    """
    works = (what, what) if isinstance(what, str) else what
    with contextlib.ExitStack() as stack:
        workers, records = [], []
        for spec, work in zip((first, second), works, strict=True):
            worker = stack.enter_context(WorkerProcess(log, timeout))
            built = worker.build(spec)
            first_step = worker.run(work, steps=1)
            workers.append(worker)
            records.append((built, first_step, worker.run(work, steps=1)))
        slower = max(warm["seconds"] for _, _, warm in records)
        steps = max(1, round(round_seconds / slower))
        replies = interleave(workers, works, rounds, steps)
    sides = []
    for spec, (built, first_step, _), turns in zip((first, second), records, replies, strict=True):
        step_seconds = [turn["seconds"] / steps for turn in turns]
        sides.append(
            Side(
                step_seconds=step_seconds,
                images_per_second=spec.size.batch_size / statistics.median(step_seconds),
                build_seconds=built["build_seconds"],
                first_step_seconds=built["build_seconds"] + first_step["seconds"],
                built_mb=built["resident_mb"],
                traced_mb=first_step["resident_mb"],
                peak_mb=max(turn["peak_mb"] for turn in turns),
                num_parameters=built["num_parameters"],
                is_finite=all(math.isfinite(turn["value"]) for turn in turns),
            )
        )
    ratios, ratio = median_ratio(sides[0].step_seconds, sides[1].step_seconds)
    return Measurement(
        what=" / ".join(dict.fromkeys(works)),
        first=sides[0],
        second=sides[1],
        ratios=ratios,
        ratio=ratio,
    )


def interleave(
    runners: list[Runner], works: tuple[str, ...], rounds: int, steps: int
) -> list[list[dict[str, Any]]]:
    """Lets the runners work in turns, and returns the replies of each, by round.

    A turn starts with a step that does not count: until then threads of the other process may wait
    busily for work, and the caches hold what is its own.
    """
    replies = [[] for _ in runners]
    for _ in range(rounds):
        for runner, work, record in zip(runners, works, replies, strict=True):
            runner.run(work, steps=1)
            record.append(runner.run(work, steps))
    return replies


def median_ratio(first: list[float], second: list[float]) -> tuple[list[float], float]:
    """Returns how many times as fast as the second the first is, round by round, and the median.

    #### Example

    >>> median_ratio([1., 1., 4.], [2., 3., 4.])
    ([2.0, 3.0, 1.0], 2.0)

    Args:
      first: its seconds for a step, by round.
      second: likewise.
    """
    ratios = [b / a for a, b in zip(first, second, strict=True)]
    return ratios, statistics.median(ratios)
