"""Measures what flows add to the mixtures of `tfr.FlowDensity` and `tfr.FlowRegressor`.

    python -m benchmarks.tables.flows --tables=leaves,NOx
    python -m benchmarks.tables.flows --tables=Computers --regression

For each table, the script fits 70% of the rows with the default flows and without flows. It prints
the mean log densities of the other rows in nats, the mixture weight of the flows, and the CPU
seconds of both fits. `benchmarks/tables/data.py` defines the tables.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

from sklearn.model_selection import train_test_split

import tfp_realnvp as tfr
from benchmarks.tables import data
from tfp_realnvp.tables import boosted_trees, stack, table_flow

__all__ = ["main", "measure"]


def measure(name: str, is_regression: bool, seed: int = 0) -> str:
    """Returns a line of the table of results."""
    tables = data.load_regression(name) if is_regression else (data.load(name),)
    parts = train_test_split(*tables, train_size=0.7, random_state=seed)
    learned, held_out = parts[::2], parts[1::2]
    kind = tfr.FlowRegressor if is_regression else tfr.FlowDensity
    scores, seconds, shares = [], [], []
    for least in (stack._MIN_ROWS_OF_FLOWS, math.inf):
        with mock.patch.object(stack, "_MIN_ROWS_OF_FLOWS", least):
            start = time.process_time()
            fitted = kind(random_state=seed, verbose=0).fit(*learned)
            seconds.append(time.process_time() - start)
        scores.append(fitted.score_samples(*held_out).mean())
        shares.append(_share_of_flows(fitted._stacks[0]))
    shape = " × ".join(f"{size:,}" for size in learned[0].shape)
    nats = " | ".join(f"{score:.3f}" for score in scores)
    return f"| {name} | {shape} | {nats} | {shares[0]:.2f} | {seconds[0]:.1f}, {seconds[1]:.1f} |"


def _share_of_flows(mixture: stack.TableStack) -> float:
    def is_flow(part: Any) -> bool:
        density = part.density if isinstance(part, boosted_trees.GivenTrees) else part
        return isinstance(density, table_flow.TableFlow)

    parts = zip(mixture.parts, mixture.shares, strict=True)
    return sum(share for part, share in parts if is_flow(part))


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table of results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", required=True, help="names, comma-separated")
    parser.add_argument("--regression", action="store_true", help="p(y | x) instead of p(x)")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of the fits")
    flags = parser.parse_args(arguments)
    print("| table | rows to learn | with flows | without | share | CPU seconds |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in flags.tables.split(","):
        print(measure(name, flags.regression, flags.seed), flush=True)


if __name__ == "__main__":
    main()
