"""Learns the density of a table, and compares it with other estimates by cross-validation.

    python examples/train_table.py                            # wine
    python examples/train_table.py --dataset=breast_cancer    # or diabetes, digits
    python examples/train_table.py --dataset=rows.csv         # or rows.npy

"Real NVP" is `tfr.FlowDensity`, a mixture of flows and simpler densities. The other estimators are
a normal distribution, a mixture of normal distributions and a kernel density estimate. All are
fitted to the same unscaled training rows. Their options are selected within the training rows, by
cross-validation or on held-out rows. The score is the mean log density of test rows.

`train_uci.py` trains flows on the larger tables of the UCI benchmark.

The script prints a table and writes it to `results.md` and `results.json` in the output folder.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import warnings
from collections.abc import Callable

# TensorFlow uses oneDNN by default only on processors with AVX-512 VNNI or AVX-VNNI instructions.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
import numpy as np
import scipy.stats
from absl import app, flags, logging
from sklearn import datasets
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.neighbors import KernelDensity

import tfp_realnvp as tfr

_EMBEDDED = ("wine", "breast_cancer", "diabetes", "digits")

flags.DEFINE_string("dataset", "wine", f"One of {', '.join(_EMBEDDED)}, or a file.")
flags.DEFINE_integer("num_couplings", 8, "Couplings of a flow.", lower_bound=1)
flags.DEFINE_integer("num_folds", 5, "Folds of the cross-validation.", lower_bound=2)
flags.DEFINE_integer("num_members", 5, "Flows of the mixture.", lower_bound=2)
flags.DEFINE_integer("max_steps", 2_000, "Steps of training of each flow.", lower_bound=1)
flags.DEFINE_float(
    "noise", None, "Standard deviation of the noise in training; default: falling.", lower_bound=0
)
flags.DEFINE_integer("seed", 0, "Seed of weights, folds and noise.")
flags.DEFINE_string("output_dir", None, "Output folder; default: results/<dataset>.")

FLAGS = flags.FLAGS

LogProb = Callable[[np.ndarray], np.ndarray]

_NUM_COMPONENTS = [1, 2, 3, 4, 6, 8, 12]
_BANDWIDTHS = np.geomspace(0.1, 2.0, 20)


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    keras.utils.set_random_seed(FLAGS.seed)
    name = pathlib.Path(FLAGS.dataset).stem
    output_dir = pathlib.Path(FLAGS.output_dir or f"results/{name}")
    results = cross_validate(load_table(FLAGS.dataset))
    table = as_markdown(name, results)
    print("\n" + table)
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "results.md").write_text(table, encoding="utf-8")
    (output_dir / "results.json").write_text(json.dumps(results, indent=2))
    print(f"results are in {output_dir}")


def as_markdown(name: str, results: list[dict]) -> str:
    """Returns a table of log likelihoods, with standard errors."""
    lines = [
        f"| {name} | log likelihood, nats a row | Real NVP's lead |",
        "| --- | ---: | ---: |",
    ]
    for each in results:
        cells = ["", ""]
        for i, quantity in enumerate(("log_likelihood", "lead")):
            if quantity in each:
                cells[i] = " ± ".join(f"{value:.3f}" for value in each[quantity])
        lines.append(f"| {each['estimate']} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Returns the mean and its standard error."""
    return float(np.mean(values)), float(np.std(values) / math.sqrt(len(values)))


def cross_validate(rows: np.ndarray) -> list[dict]:
    """Compares mean log densities; the estimators for a row are fitted without its fold."""
    print(f"{FLAGS.dataset}: {len(rows):,} rows of {rows.shape[1]} columns")
    others: dict[str, Callable[[np.ndarray], LogProb]] = {
        "normal distribution": fit_normal,
        "mixture of normal distributions": fit_mixture,
        "kernel density estimate": fit_kde,
    }
    log_probs = {name: np.zeros(len(rows)) for name in ("Real NVP", *others)}
    folds = KFold(FLAGS.num_folds, shuffle=True, random_state=FLAGS.seed)
    for i, (train, test) in enumerate(folds.split(rows)):
        flow = tfr.FlowDensity(
            FLAGS.num_members,
            num_couplings=FLAGS.num_couplings,
            noise=FLAGS.noise,
            max_steps=FLAGS.max_steps,
            random_state=FLAGS.seed,
        ).fit(rows[train])
        log_probs["Real NVP"][test] = flow.score_samples(rows[test])
        for name, fit in others.items():
            log_probs[name][test] = fit(rows[train])(rows[test])
        means = ", ".join(f"{name} {each[test].mean():.2f}" for name, each in log_probs.items())
        print(f"fold {i + 1}: {means}", flush=True)
    lead = {name: log_probs["Real NVP"] - each for name, each in log_probs.items()}
    return [
        {
            "estimate": name,
            "log_likelihood": mean_and_error(each),
            **({"lead": mean_and_error(lead[name])} if name in others else {}),
        }
        for name, each in log_probs.items()
    ]


def load_table(name: str) -> np.ndarray:
    """Returns a table, float64 [N, D], without targets.

    Args:
      name: a table of scikit-learn, or the path of a file: an `*.npy` array, or comma-separated
        text with or without a header.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file does not contain at least two rows of finite numbers.
    """
    if name in _EMBEDDED:
        options = {"scaled": False} if name == "diabetes" else {}
        return np.asarray(getattr(datasets, f"load_{name}")(**options).data, np.float64)
    path = pathlib.Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"Expected one of {', '.join(_EMBEDDED)}, or a file, got {name!r}.")
    rows = _read(path)
    if rows.ndim != 2 or len(rows) < 2 or not np.isfinite(rows).all():
        raise ValueError(
            f"Expected rows of finite numbers, [N, D], in {name}, got shape {rows.shape}, "
            f"{np.count_nonzero(~np.isfinite(rows))} values not finite."
        )
    return rows


def _read(path: pathlib.Path) -> np.ndarray:
    if path.suffix == ".npy":
        return np.asarray(np.load(path, allow_pickle=False), np.float64)
    rows = np.genfromtxt(path, delimiter=",", ndmin=2, encoding="utf-8")
    # `genfromtxt` reads the names of columns as NaN.
    has_header = len(rows) > 1 and np.isnan(rows[0]).all()
    return rows[1:] if has_header else rows


# Estimates.


def fit_normal(rows: np.ndarray) -> LogProb:
    """Returns the log density of the normal distribution with the moments of the rows."""
    scale = _scale(rows)
    covariance = _covariance(rows / scale)
    normal = scipy.stats.multivariate_normal(rows.mean(axis=0) / scale, covariance)
    return lambda x: normal.logpdf(x / scale) - np.log(scale).sum()


def fit_mixture(rows: np.ndarray) -> LogProb:
    """Returns the log density of the mixture with the best number and kind of components."""
    scale = _scale(rows)
    search = GridSearchCV(
        GaussianMixture(random_state=FLAGS.seed),
        {"n_components": _NUM_COMPONENTS, "covariance_type": ["full", "tied", "diag"]},
        cv=_inner_folds(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        search.fit(rows / scale)
    return lambda x: search.score_samples(x / scale) - np.log(scale).sum()


def fit_kde(rows: np.ndarray) -> LogProb:
    """Returns the log density of the kernel density estimate with the best bandwidth.

    Rows are scaled to columns of variance 1, or whitened, whichever has the better score.
    """
    scale = np.diag(1 / _scale(rows))
    cholesky = np.linalg.cholesky(_covariance(rows @ scale))
    candidates = []
    for matrix in (scale, scale @ np.linalg.inv(cholesky).T):
        search = GridSearchCV(KernelDensity(), {"bandwidth": _BANDWIDTHS}, cv=_inner_folds())
        search.fit(rows @ matrix)
        log_det = np.linalg.slogdet(matrix)[1]
        # The score is a sum over the rows of a fold.
        score = search.best_score_ * FLAGS.num_folds / len(rows) + log_det
        candidates.append((score, matrix, log_det, search))
    _, matrix, log_det, search = max(candidates, key=lambda candidate: candidate[0])
    return lambda x: search.score_samples(x @ matrix) + log_det


def _scale(rows: np.ndarray) -> np.ndarray:
    """Returns the standard deviation of each column, or 1 for a constant column."""
    stddev = rows.std(axis=0)
    return np.where(stddev > 0, stddev, 1.0)


def _covariance(rows: np.ndarray) -> np.ndarray:
    """Returns the covariance, regularized like `GaussianMixture` by its default `reg_covar`."""
    return np.atleast_2d(np.cov(rows.T, ddof=0)) + 1e-6 * np.eye(rows.shape[1])


def _inner_folds() -> KFold:
    return KFold(FLAGS.num_folds, shuffle=True, random_state=FLAGS.seed)


if __name__ == "__main__":
    app.run(main)
