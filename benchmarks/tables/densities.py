"""Compares `tfr.FlowDensity` and `tfr.FlowRegressor` with other density estimators of tables.

    python -m benchmarks.tables.densities                        # p(x) of `VERDICT`, hours
    python -m benchmarks.tables.densities --set=seen --seeds=3   # of tables that were seen before
    python -m benchmarks.tables.densities --tables=glass,leaves --seeds=1
    python -m benchmarks.tables.densities --regression           # p(y | x)

The sets of tables differ in their influence on the design, see `benchmarks/tables/data.py`:

* `VERDICT`, without influence, except that weather revealed a fault: athletes, glass, cirrhosis,
  leaves, bodies, olive oils, air in summer, hawks, Sacramento, radar, fire losses, NOx, weather,
  pixels.
* `SEEN`, some with influence: iris, wine, diabetes, breast cancer, crabs, Pima, penguins, mtcars,
  Hitters, Prestige, birthwt, College, swiss, Texas housing.
* `CHOICES`, all with influence: faithful, quakes, Boston, diamonds, moons, two modes, ring,
  airquality, Auto, CPS1985, Carseats.
* `REGRESSION`, for p(y | x): cpus, GAGurine, biomass, concrete, Saratoga, CPS1988 and Credit with
  influence; engel, Computers, CASchools, car prices, babies, Ames, Wages, TenMileRace and
  deliveries without.

Each seed splits a table at random into 70% training and 30% test rows. The script prints the mean
log density of the test rows in nats, in the original units of the columns and without noise on
rounded columns. After "±" it prints the standard error over seeds, which is too small, because
splits of one table share rows. The lead is the gain in mean log density of the first estimator over
the best other estimator, on the same splits.

`FlowDensity` has its defaults. `benchmarks/tables/peers.py` defines the other density estimators.
zuko and pzflow train on the same rows for as many seconds as `FlowDensity`, and at least 30.
`benchmarks/tables/regression.py` defines the other regressions. zuko, pzflow and ngboost run if
they are installed.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import time
import warnings

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import numpy as np
from sklearn.model_selection import train_test_split

import tfp_realnvp as tfr
from benchmarks.machine import cpu_name, num_cores
from benchmarks.tables import data
from benchmarks.tables.peers import PEERS, installed_peers
from benchmarks.tables.regression import installed_regressions, measure
from tfp_realnvp.internal import atomic_files

__all__ = ["compare_densities", "compare_regressions", "main"]

_LEAST_SECONDS = 30.0
_LOWEST = -10_000


def compare_densities(name: str, num_seeds: int, peers: list[str]) -> list[str]:
    """Returns the lines for one data table in the table of results."""
    rows = data.load(name)
    names = ["FlowDensity", *peers]
    scores, seconds = (np.full([num_seeds, len(names)], np.nan) for _ in range(2))
    for seed in range(num_seeds):
        train, test = train_test_split(rows, train_size=0.7, random_state=seed)
        start = time.perf_counter()
        density = tfr.FlowDensity(random_state=seed, verbose=0).fit(train)
        seconds[seed, 0] = time.perf_counter() - start
        scores[seed, 0] = density.score(test)
        center, scale = train.mean(axis=0), train.std(axis=0)
        scale[scale == 0] = 1.0
        train, test = (train - center) / scale, (test - center) / scale
        for i, peer in enumerate(peers, 1):
            if peer == "pzflow" and rows.shape[1] == 1:
                continue
            start = time.perf_counter()
            log_prob = PEERS[peer](train, seed, max(seconds[seed, 0], _LEAST_SECONDS))
            seconds[seed, i] = time.perf_counter() - start
            scores[seed, i] = log_prob(test).mean() - np.log(scale).sum()
    cells = [
        "–" if np.isnan(second).any() else f"{mean_and_error(score)}, {second.mean():.0f} s"
        for score, second in zip(scores.T, seconds.T, strict=True)
    ]
    shape = f"{rows.shape[0]:,} × {rows.shape[1]}"
    return [_line([name, shape, *cells, lead_of_first(scores)])]


def compare_regressions(name: str, num_seeds: int, regressions: list[str]) -> list[str]:
    """Returns the lines for one data table, one line per regression."""
    x, _ = data.load_regression(name)
    measured = {
        regression: np.array([measure(regression, name, seed) for seed in range(num_seeds)])
        for regression in regressions
    }
    lead = lead_of_first(np.stack([figures[:, 0] for figures in measured.values()], axis=1))
    lines = []
    for i, (regression, figures) in enumerate(measured.items()):
        log_probs, coverage, r2, seconds = figures.T
        shape = f"{x.shape[0]:,} × {x.shape[1]}"
        head = [name, shape] if i == 0 else ["", ""]
        cells = [mean_and_error(log_probs), lead if i == 0 else "", f"{coverage.mean():.1%}"]
        lines.append(
            _line([*head, regression, *cells, f"{r2.mean():.3f}", f"{seconds.mean():.0f} s"])
        )
    return lines


def lead_of_first(scores: np.ndarray) -> str:
    """Subtracts the scores of the best other estimator from the scores of the first one."""
    means = scores[:, 1:].mean(axis=0)
    best = np.argmax(np.where(np.isnan(means), -np.inf, means))
    return mean_and_error(scores[:, 0] - scores[:, 1 + best], sign="+")


def mean_and_error(values: np.ndarray, sign: str = "") -> str:
    """Returns the mean over seeds, and for at least two seeds its standard error."""
    mean = values.mean()
    if mean < _LOWEST:
        return f"< {_LOWEST:,}"
    error = f" ± {values.std(ddof=1) / np.sqrt(len(values)):.2f}" if len(values) > 1 else ""
    return f"{mean:{sign}.2f}{error}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--set", choices=list(data.SETS), default="verdict")
    parser.add_argument("--regression", action="store_true", help="p(y | x) instead of p(x)")
    parser.add_argument("--tables", help="names of some tables of the set, with commas between")
    parser.add_argument("--seeds", type=int, default=5, help="random splits of each table")
    parser.add_argument("--output_dir", type=pathlib.Path, default="results/tables")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # scikit-learn warns of fewer distinct rows than clusters
    if arguments.regression:
        title, tables = "regression", data.REGRESSION
        contenders, compare = installed_regressions(), compare_regressions
        header = ["regression", "log density", "lead", "90% intervals cover", "R²", "time"]
    else:
        title, tables = arguments.set, data.SETS[arguments.set]
        contenders, compare = installed_peers(), compare_densities
        header = ["FlowDensity", *contenders, "lead"]
    names = arguments.tables.split(",") if arguments.tables else list(tables)
    if unknown := set(names) - set(tables):
        parser.error(f"expected tables out of {', '.join(tables)}, got {', '.join(unknown)}")
    # Results of some tables get their own file, to keep the results of the whole set.
    path = arguments.output_dir / f"{title}{'_part' if arguments.tables else ''}.md"
    lines = [_line(["table", "shape", *header]), f"|{' --- |' * 2}{' ---: |' * len(header)}"]
    print(f"{cpu_name()}, {num_cores()} cores", *lines, sep="\n", flush=True)
    for name in names:
        new = compare(name, arguments.seeds, contenders)
        print(*new, sep="\n", flush=True)
        lines += new
        atomic_files.write_text(path, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
