"""Measures speed and memory, side by side: `make bench`, or `python -m benchmarks.run --help`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import IO, Any

from benchmarks import plan, report
from benchmarks.comparison import compare
from benchmarks.contenders.contender import NotAvailable
from benchmarks.machine import busy_cores, describe_machine
from benchmarks.matrix_rate import bfloat16_pays
from benchmarks.sizes import SIZES
from benchmarks.spec import Spec, num_cores
from benchmarks.worker_process import WorkerError

__all__ = ["main"]

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_DEFAULT_SIZES = ("small", "cifar10", "images64")
_NO_BFLOAT16 = "left out: no faster in bfloat16 (--only and --pair measure it all the same)"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparisons, prints each when it is done, and all in tables at the end."""
    flags = _parse(arguments)
    comparisons = list(_chosen(flags))
    if not comparisons:
        raise SystemExit("no comparison is left: see --help for rows, sizes and operations")
    results = {"machine": describe_machine(flags.threads), "entries": []}
    has_bfloat16 = bfloat16_pays(results["machine"]["matrix_gflops"])
    with contextlib.ExitStack() as stack:
        log = None
        if flags.output_dir is not None:
            flags.output_dir.mkdir(parents=True, exist_ok=True)
            log = stack.enter_context(open(flags.output_dir / "workers.log", "w"))
        for size, what, comparison in comparisons:
            is_asked_for = flags.pair is not None or flags.only
            if comparison.uses_bfloat16 and not (has_bfloat16 or is_asked_for):
                entry = {**_heading(size, what, comparison), "reason": _NO_BFLOAT16}
            else:
                entry = _measure(size, what, comparison, flags, log)
            results["entries"].append(entry)
            print(report.sentence(entry), flush=True)
            # At each, so that an interrupted run leaves what it has.
            _write(results, flags.output_dir)
        if flags.quality_data is not None:
            results["quality"] = list(_quality_runs(flags, log))
            if has_bfloat16:
                results["precision"] = _program("precision", log, data=flags.quality_data.resolve())
            _write(results, flags.output_dir)
        if flags.pair is None and flags.only is None:
            results["pipeline"] = _program("pipeline", log)
            _write(results, flags.output_dir)
    print("\n" + report.markdown(results), flush=True)


def _write(results: dict[str, Any], output_dir: pathlib.Path | None) -> None:
    if output_dir is not None:
        (output_dir / "results.json").write_text(json.dumps(results, indent=1))
        (output_dir / "results.md").write_text(report.markdown(results))


def _quality_runs(flags: argparse.Namespace, log: IO[str] | None) -> Iterator[dict[str, Any]]:
    for contender in ("ours", "pytorch", "glow"):
        outcome = _program(
            "quality",
            log,
            contender=contender,
            data=flags.quality_data.resolve(),
            seconds=flags.quality_seconds,
        )
        yield {"contender": contender, **outcome}


def _program(name: str, log: IO[str] | None, **flags: Any) -> dict[str, Any]:
    """Returns what another program of this folder prints."""
    program = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *(f"--{k}={v}" for k, v in flags.items())],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if log is None else log,
        text=True,
    )
    if program.returncode:
        return {"reason": f"exit code {program.returncode}"}
    print(program.stdout, flush=True)
    return json.loads(program.stdout)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"Rows: {', '.join(plan.ROWS)}.",
    )
    parser.add_argument("--quick", action="store_true", help="the small size, 3 rounds of a step")
    parser.add_argument("--only", type=_names, help="comparisons with one of these rows, commas")
    parser.add_argument("--pair", type=_pair, help="one comparison of any two rows: FIRST:SECOND")
    parser.add_argument("--sizes", type=_names, help=f"of {', '.join(SIZES)}, commas")
    parser.add_argument("--what", type=_names, help=f"of {', '.join(plan.WHATS)}, commas")
    parser.add_argument("--output_dir", type=pathlib.Path, help="for results.json and results.md")
    parser.add_argument("--rounds", type=int, help="turns of each contender")
    parser.add_argument("--round_seconds", type=float, help="about how long a turn lasts")
    parser.add_argument("--threads", type=int, default=num_cores(), help="of each framework")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for one turn")
    parser.add_argument("--quality_data", type=pathlib.Path, help="also train on this .npz file")
    parser.add_argument("--quality_seconds", type=float, default=600.0, help="for each contender")
    flags = parser.parse_args(arguments)
    if flags.sizes is None:
        flags.sizes = ("small",) if flags.quick else _DEFAULT_SIZES
    if flags.rounds is None and flags.quick:
        flags.rounds = 3
    if flags.round_seconds is None:
        flags.round_seconds = 0.0 if flags.quick else 3.0
    for name, given, known in (
        ("--sizes", flags.sizes, SIZES),
        ("--only", flags.only, plan.ROWS),
        ("--pair", flags.pair, plan.ROWS),
        ("--what", flags.what, plan.WHATS),
    ):
        unknown = set(given or ()) - set(known)
        if unknown:
            parser.error(f"{name}: expected some of {', '.join(known)}, got {sorted(unknown)}")
    return flags


def _names(value: str) -> tuple[str, ...]:
    return tuple(value.split(","))


def _pair(value: str) -> tuple[str, ...]:
    first, _, second = value.partition(":")
    return first, second


def _chosen(
    flags: argparse.Namespace,
) -> Iterator[tuple[str, str | tuple[str, str], plan.Comparison]]:
    for size in flags.sizes:
        comparisons = plan.COMPARISONS
        if size not in ("tiny", "small"):
            comparisons = [dataclasses.replace(c, whats=c.whats_of_large) for c in comparisons]
        if size == "images64":
            comparisons = (*comparisons, *plan.MEMORY_COMPARISONS)
        if flags.pair is not None:
            comparisons = (plan.Comparison(*flags.pair),)
        for comparison in comparisons:
            if flags.only and not {comparison.first, comparison.second} & set(flags.only):
                continue
            for what in comparison.whats:
                asked = {what} if isinstance(what, str) else set(what)
                if flags.what is None or asked <= set(flags.what):
                    yield size, what, comparison


def _heading(size: str, what: str | tuple[str, str], comparison: plan.Comparison) -> dict[str, Any]:
    label = what if isinstance(what, str) else " / ".join(what)
    entry = {
        "size": size,
        "what": label,
        "first": comparison.first,
        "second": comparison.second,
    }
    if size == "small" and label in comparison.at_least:
        entry["at_least"] = comparison.at_least[label]
    return entry


def _measure(
    size: str,
    what: str | tuple[str, str],
    comparison: plan.Comparison,
    flags: argparse.Namespace,
    log: IO[str] | None,
) -> dict[str, Any]:
    specs = []
    for row in (comparison.first, comparison.second):
        contender, options = plan.ROWS[row]
        specs.append(Spec(contender, SIZES[size], options, flags.threads))
    entry = {**_heading(size, what, comparison), "busy_cores": busy_cores()}
    try:
        measurement = compare(
            *specs,
            what,
            rounds=flags.rounds or SIZES[size].rounds,
            round_seconds=flags.round_seconds,
            timeout=flags.timeout,
            log=log,
        )
    except NotAvailable as reason:
        return {**entry, "reason": f"not available: {reason}"}
    except WorkerError as error:
        return {**entry, "reason": f"failed: {error}"}
    return {**entry, "measurement": dataclasses.asdict(measurement)}


if __name__ == "__main__":
    main()
