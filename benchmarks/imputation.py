"""Compares samples of missing cells by `tfr.FlowDensity.impute` with known answers.

    python -m benchmarks.imputation

A fifth of the cells of new rows are missing, at random.

* A normal table of five columns has a known distribution of missing cells given the others. The
  script prints the errors of sample means, in standard deviations of the columns, and ratios of
  sample standard deviations to the exact ones.
* Wine has known cells. The script prints the share of them in the 90% intervals of the samples,
  over splits of the rows.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import numpy as np
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split

import tfp_realnvp as tfr
from benchmarks.machine import cpu_name, num_cores

_PART_MISSING = 0.2
_NUM_SPLITS = 5


def normal_table(seed: int, num_samples: int = 200) -> tuple[float, float, float]:
    """Returns the mean and root mean square error of means, and the ratio of spreads."""
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
    """Returns the share of the missing cells in the 90% intervals."""
    train, test = train_test_split(load_wine().data, train_size=0.7, random_state=seed)
    density = tfr.FlowDensity(random_state=seed, verbose=0).fit(train)
    is_missing = np.random.default_rng(seed).random(test.shape) < _PART_MISSING
    samples = density.impute(np.where(is_missing, np.nan, test), num_samples, random_state=seed)
    low, high = np.quantile(samples, [0.05, 0.95], axis=0)
    return ((low <= test) & (test <= high))[is_missing].mean()


def main() -> None:
    print(f"{cpu_name()}, {num_cores()} cores")
    figures = np.array([normal_table(seed) for seed in range(_NUM_SPLITS)])
    for name, values in zip(("mean error", "root mean square", "ratio"), figures.T, strict=True):
        print(f"normal table, {name}: {values.mean():.3f} ({np.round(values, 3).tolist()})")
    coverages = [coverage_of_wine(seed) for seed in range(_NUM_SPLITS)]
    print(f"wine, coverage: {np.mean(coverages):.1%} ({np.round(coverages, 3).tolist()})")


if __name__ == "__main__":
    main()
