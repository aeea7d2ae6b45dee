"""Measures speed and memory side by side: `make bench`, or `python -m benchmarks.run --help`."""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

from benchmarks import report
from benchmarks.comparison import WorkerError, compare
from benchmarks.machine import ROOT, bfloat16_pays, describe_machine, num_cores
from benchmarks.rows import COMPARISONS, MEMORY_COMPARISONS, ROWS, WHATS, Comparison, parse_row
from benchmarks.sizes import SIZES

__all__ = ["main"]

_NO_GAIN = "left out: no faster in bfloat16 (--only and --pair measure it nevertheless)"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparisons, prints each result at once, and at the end all results as tables."""
    flags = _parse(arguments)
    chosen = list(_chosen(flags))
    if not chosen:
        raise SystemExit("no comparison is left: see --help for rows, sizes and operations")
    results = {"machine": describe_machine(flags.threads), "entries": []}
    with_bfloat16 = flags.pair or flags.only or bfloat16_pays(results["machine"]["matrix_gflops"])
    with contextlib.ExitStack() as stack:
        log = None
        if flags.output_dir is not None:
            flags.output_dir.mkdir(parents=True, exist_ok=True)
            log = stack.enter_context(open(flags.output_dir / "workers.log", "w"))
        for size, what, rows in chosen:
            if any("bf16" in row for row in rows) and not with_bfloat16:
                outcome = {"reason": _NO_GAIN}
            else:
                outcome = _measure(size, what, rows, flags, log)
            results["entries"].append({"size": size, "what": what, "rows": rows, **outcome})
            print(report.sentence(results["entries"][-1]), flush=True)
            # Write after each comparison, so that an interrupted run keeps its results.
            _write(results, flags.output_dir)
        if flags.quality_data is not None:
            results["quality"] = [
                _quality(contender, flags, log) for contender in ("ours", "pytorch", "glow")
            ]
            _write(results, flags.output_dir)
    print("\n" + report.markdown(results), flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"Rows: {', '.join(ROWS)}. A list is separated by commas. A row of this package may "
        "be ROW@FOLDER in --pair, which measures the package of another checkout.",
    )
    parser.add_argument("--quick", action="store_true", help="the small size, 3 turns of a step")
    parser.add_argument("--only", type=_list_of(ROWS), help="comparisons with one of these rows")
    parser.add_argument("--pair", type=_pair, help="one comparison of any two rows, FIRST:SECOND")
    parser.add_argument("--sizes", type=_list_of(SIZES), help=f"of {', '.join(SIZES)}")
    parser.add_argument("--what", type=_list_of(WHATS), help=f"of {', '.join(WHATS)}")
    parser.add_argument("--output_dir", type=pathlib.Path, help="for results.json and results.md")
    parser.add_argument("--rounds", type=int, help="turns of each contender")
    parser.add_argument("--round_seconds", type=float, help="about how long a turn lasts")
    parser.add_argument("--threads", type=int, default=num_cores(), help="of each framework")
    parser.add_argument("--quality_data", type=pathlib.Path, help="also train on this .npz file")
    parser.add_argument("--quality_seconds", type=float, default=600.0, help="of each training")
    flags = parser.parse_args(arguments)
    if flags.sizes is None:
        flags.sizes = ["small"] if flags.quick else ["small", "cifar10", "images64"]
    if flags.rounds is None and flags.quick:
        flags.rounds = 3
    if flags.round_seconds is None:
        flags.round_seconds = 0.0 if flags.quick else 3.0
    return flags


def _list_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    def parse(value: str) -> list[str]:
        names = value.split(",")
        if unknown := set(names) - set(known):
            expected = ", ".join(known)
            raise argparse.ArgumentTypeError(f"expected some of {expected}, got {sorted(unknown)}")
        return names

    return parse


def _pair(value: str) -> tuple[str, str]:
    first, _, second = value.partition(":")
    try:
        parse_row(first), parse_row(second)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return first, second


def _chosen(flags: argparse.Namespace) -> Iterator[tuple[str, str, tuple[str, str]]]:
    """Yields the size, the operation and both rows of each requested comparison."""
    for size in flags.sizes:
        comparisons = COMPARISONS + (MEMORY_COMPARISONS if size == "images64" else ())
        if flags.pair:
            comparisons = (Comparison(*flags.pair, WHATS, WHATS),)
        for first, second, whats, whats_of_large in comparisons:
            if flags.only and not {first, second} & set(flags.only):
                continue
            for what in whats_of_large if size in ("cifar10", "images64") else whats:
                if flags.what is None or what in flags.what:
                    yield size, what, (first, second)


def _measure(
    size: str, what: str, rows: tuple[str, str], flags: argparse.Namespace, log: IO[str] | None
) -> dict[str, Any]:
    specs = [{"size": size, "threads": flags.threads, **parse_row(row)} for row in rows]
    rounds = flags.rounds or SIZES[size].rounds
    try:
        return compare(specs, what, rounds=rounds, round_seconds=flags.round_seconds, log=log)
    except WorkerError as error:
        return {"reason": f"failed: {error}"}


def _quality(contender: str, flags: argparse.Namespace, log: IO[str] | None) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.quality", f"--contender={contender}"]
    command += [f"--data={flags.quality_data.resolve()}", f"--seconds={flags.quality_seconds}"]
    errors = subprocess.DEVNULL if log is None else log
    program = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
    if program.returncode:
        return {"contender": contender, "reason": f"failed: exit code {program.returncode}"}
    print(program.stdout, flush=True)
    return json.loads(program.stdout)


def _write(results: dict[str, Any], output_dir: pathlib.Path | None) -> None:
    if output_dir is not None:
        (output_dir / "results.json").write_text(json.dumps(results, indent=1))
        (output_dir / "results.md").write_text(report.markdown(results))


if __name__ == "__main__":
    main()
