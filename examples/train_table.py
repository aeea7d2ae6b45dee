"""Learns the density of a table, and compares it with other estimates by cross-validation.

    python examples/train_table.py                            # wine
    python examples/train_table.py --dataset=breast_cancer    # or diabetes, digits
    python examples/train_table.py --dataset=rows.csv         # or rows.npy
    python examples/train_table.py --uci=power --data_dir=... --limit_minutes=60

Beside Real NVP are a normal distribution, a mixture of normal distributions and a kernel density
estimate. All see the same rows, with uniform noise of the width to which each column is rounded.
What an estimate can choose, it chooses by cross-validation or held-out rows within the rows that it
is given. The log likelihoods are those of rows that it was not given.

The UCI tables have their own split; published results are printed beside the flow's.

Prints a table and writes it to `results.md` and `results.json` in the output folder.
"""

from __future__ import annotations

import math
import pathlib
import warnings
from collections.abc import Callable

import onednn  # noqa: F401  (before TensorFlow)
import keras
import linear_map
import numpy as np
import tables
import tensorflow_probability as tfp
import uci_tables
from absl import app, flags, logging
from flow_committee import FlowCommittee
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.neighbors import KernelDensity

import tfp_realnvp as tfr
from tfp_realnvp.internal import atomic_files

flags.DEFINE_string("dataset", "wine", f"One of {', '.join(tables.EMBEDDED)}, or a file.")
flags.DEFINE_enum("uci", None, uci_tables.NAMES, "A UCI table instead.")
flags.DEFINE_string("data_dir", None, "Folder of the UCI tables, see uci_tables.py.")
flags.DEFINE_float("limit_minutes", 30.0, "Training time on a UCI table.")
flags.DEFINE_integer(
    "num_couplings", None, "Couplings of a flow; default: 4, on a UCI table 10.", lower_bound=1
)
flags.DEFINE_integer("num_folds", 5, "Folds of the cross-validation.", lower_bound=2)
flags.DEFINE_integer("num_members", 5, "Flows of the mixture.", lower_bound=2)
flags.DEFINE_integer("max_steps", 2_000, "Steps of training of each flow.", lower_bound=1)
flags.DEFINE_float("noise", 0.3, "Standard deviation of the noise in training.", lower_bound=0)
flags.DEFINE_integer("seed", 0, "Seed of weights, folds and noise.")
flags.DEFINE_string("output_dir", None, "Output folder; default: results/<dataset>.")

FLAGS = flags.FLAGS

LogProb = Callable[[np.ndarray], np.ndarray]

_NUM_COMPONENTS = [1, 2, 3, 4, 6, 8, 12]
_BANDWIDTHS = np.geomspace(0.1, 2.0, 20)

_UCI_ARCHITECTURE = {"num_filters": 128, "transformer": "rational_quadratic_spline"}
_UCI_LEARNING_RATE = 1e-3


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    keras.utils.set_random_seed(FLAGS.seed)
    name = FLAGS.uci or pathlib.Path(FLAGS.dataset).stem
    output_dir = pathlib.Path(FLAGS.output_dir or f"results/{name}")
    results = learn_uci(output_dir) if FLAGS.uci else cross_validate()
    table = as_markdown(name, results)
    print("\n" + table)
    atomic_files.write_text(output_dir / "results.md", table)
    atomic_files.write_json(output_dir / "results.json", results)
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


# Small tables.


def cross_validate() -> list[dict]:
    """Returns the log likelihood of each estimate, of rows in folds that it was not fitted to."""
    rows = tables.dequantize(tables.load(FLAGS.dataset), FLAGS.seed)
    print(f"{FLAGS.dataset}: {len(rows):,} rows of {rows.shape[1]} columns")
    committee = FlowCommittee(
        rows.shape[1],
        num_members=FLAGS.num_members,
        max_steps=FLAGS.max_steps,
        noise=FLAGS.noise,
        num_couplings=FLAGS.num_couplings or 4,
    )
    estimates: dict[str, Callable[[np.ndarray], LogProb]] = {
        "Real NVP": lambda train: committee.fit(train, FLAGS.seed).log_prob,
        "normal distribution": fit_normal,
        "mixture of normal distributions": fit_mixture,
        "kernel density estimate": fit_kde,
    }
    log_probs = {name: np.zeros(len(rows)) for name in estimates}
    folds = KFold(FLAGS.num_folds, shuffle=True, random_state=FLAGS.seed)
    for i, (train, test) in enumerate(folds.split(rows)):
        for name, fit in estimates.items():
            log_probs[name][test] = fit(rows[train])(rows[test])
        means = ", ".join(f"{name} {each[test].mean():.2f}" for name, each in log_probs.items())
        print(f"fold {i + 1}: {means}", flush=True)
    flow = log_probs["Real NVP"]
    return [
        {
            "estimate": name,
            "log_likelihood": mean_and_error(each),
            **({} if each is flow else {"lead": mean_and_error(flow - each)}),
        }
        for name, each in log_probs.items()
    ]


def fit_normal(rows: np.ndarray) -> LogProb:
    """Returns the log density of the normal distribution with the moments of the rows."""
    to_normal = linear_map.whitening(rows)
    constant = to_normal.log_det - rows.shape[1] / 2 * math.log(2 * math.pi)
    return lambda x: constant - (to_normal(x) ** 2).sum(axis=1) / 2


def fit_mixture(rows: np.ndarray) -> LogProb:
    """Returns the log density of the mixture with the best number and kind of components."""
    scale = linear_map.standardizing(rows)
    search = GridSearchCV(
        GaussianMixture(reg_covar=1e-3, random_state=FLAGS.seed),
        {"n_components": _NUM_COMPONENTS, "covariance_type": ["full", "tied", "diag"]},
        cv=_inner_folds(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        search.fit(scale(rows))
    return lambda x: search.score_samples(scale(x)) + scale.log_det


def fit_kde(rows: np.ndarray) -> LogProb:
    """Returns the log density of the kernel density estimate with the best bandwidth.

    It is chosen whether distances are those of columns of variance 1, or of whitened rows.
    """
    candidates = []
    for scale in (linear_map.standardizing(rows), linear_map.whitening(rows)):
        search = GridSearchCV(KernelDensity(), {"bandwidth": _BANDWIDTHS}, cv=_inner_folds())
        search.fit(scale(rows))
        # The score is a sum over the rows of a fold.
        score = search.best_score_ * FLAGS.num_folds / len(rows) + scale.log_det
        candidates.append((score, scale, search))
    _, scale, search = max(candidates, key=lambda each: each[0])
    return lambda x: search.score_samples(scale(x)) + scale.log_det


def _inner_folds() -> KFold:
    return KFold(FLAGS.num_folds, shuffle=True, random_state=FLAGS.seed)


# The UCI tables.


def learn_uci(output_dir: pathlib.Path) -> list[dict]:
    """Returns the log likelihood of test rows by a flow, and published ones."""
    if FLAGS.data_dir is None:
        raise app.UsageError("--uci needs --data_dir, the folder of the tables.")
    splits = uci_tables.load(FLAGS.uci, FLAGS.data_dir)
    train, validation, test = (splits[split] for split in ("train", "validation", "test"))
    size = train.shape[1]
    base = tfp.distributions.Sample(tfp.distributions.Normal(0.0, 1.0), [size])
    bijector = tfr.RealNVPVector(
        size,
        FLAGS.num_couplings or 10,
        **_UCI_ARCHITECTURE,
        standardization=tfr.Standardization.of(train),
    )
    model = tfr.FlowModel(tfp.distributions.TransformedDistribution(base, bijector))
    model.compile(tfr.FusedAdam(_UCI_LEARNING_RATE, global_clipnorm=10.0))
    print(
        f"{FLAGS.uci}: {len(train):,} rows of {size} columns, {model.count_params():,} parameters"
    )
    budget = tfr.LearningRateBudget(_UCI_LEARNING_RATE, seconds=60 * FLAGS.limit_minutes)
    checkpoint = tfr.TrainingCheckpoint(output_dir, model, budget=budget)
    if checkpoint.restore():
        print(f"resuming after step {int(model.optimizer.iterations):,}")
    model.fit(
        train,
        batch_size=512,
        epochs=1_000_000,
        validation_data=validation,
        validation_batch_size=4_096,
        callbacks=[budget, checkpoint],
        verbose=2,
    )
    model.load_weights(output_dir / "best.weights.h5")
    log_probs = {
        "Real NVP": model.predict(test, batch_size=4_096, verbose=0),
        "normal distribution": fit_normal(train.astype(np.float64))(test),
    }
    ours = [
        {"estimate": name, "log_likelihood": mean_and_error(values)}
        for name, values in log_probs.items()
    ]
    return ours + [
        {"estimate": f"{name}, published", "log_likelihood": [by_table[FLAGS.uci]]}
        for name, by_table in uci_tables.PUBLISHED.items()
    ]


if __name__ == "__main__":
    app.run(main)
