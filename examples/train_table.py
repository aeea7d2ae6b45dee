"""Learns the density of a table, and compares it with other estimates by cross-validation.

    python examples/train_table.py                            # wine
    python examples/train_table.py --dataset=breast_cancer    # or diabetes, digits
    python examples/train_table.py --dataset=rows.csv         # or rows.npy
    python examples/train_table.py --uci=power --data_dir=... --limit_minutes=60

Real NVP is `tfr.FlowDensity`, a mixture of flows and simpler densities. Beside it are a normal
distribution, a mixture of normal distributions and a kernel density estimate. All are fitted to the
same rows and scored by the density at the rows as they are. What an estimate can choose, it chooses
by cross-validation or held-out rows within the rows that it is given. The log likelihoods are those
of rows that it was not given.

The UCI tables are those of Papamakarios, Pavlakou, Murray: Masked autoregressive flow. They have
their own split; published results are printed beside the flow's. `--data_dir` is a folder of the
files that the authors published (https://doi.org/10.5281/zenodo.1161203): `power/data.npy`,
`gas/ethylene_CO.pickle`, `hepmass/1000_train.csv` and `1000_test.csv`, `miniboone/data.npy`,
`BSDS300/BSDS300.hdf5`. Reading the pickle needs pandas; instead there can be an `ethylene_CO.npy`
of it, without the columns `Meth`, `Eth` and `Time`.

Prints a table and writes it to `results.md` and `results.json` in the output folder.
"""

from __future__ import annotations

import math
import os
import pathlib
import warnings
from collections.abc import Callable

# TensorFlow uses oneDNN by default only on processors with AVX-512 VNNI or AVX-VNNI instructions.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import h5py
import keras
import numpy as np
import scipy.stats
import tensorflow_probability as tfp
from absl import app, flags, logging
from sklearn import datasets
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.neighbors import KernelDensity

import tfp_realnvp as tfr
from tfp_realnvp.internal import atomic_files

_EMBEDDED = ("wine", "breast_cancer", "diabetes", "digits")
_UCI = ("power", "gas", "hepmass", "miniboone", "bsds300")

flags.DEFINE_string("dataset", "wine", f"One of {', '.join(_EMBEDDED)}, or a file.")
flags.DEFINE_enum("uci", None, _UCI, "A UCI table instead.")
flags.DEFINE_string("data_dir", None, "Folder of the UCI tables, see above.")
flags.DEFINE_float("limit_minutes", 30.0, "Training time on a UCI table.")
flags.DEFINE_integer(
    "num_couplings", None, "Couplings of a flow; default: 8, on a UCI table 10.", lower_bound=1
)
flags.DEFINE_integer("num_folds", 5, "Folds of the cross-validation.", lower_bound=2)
flags.DEFINE_integer("num_members", 5, "Flows of the mixture.", lower_bound=2)
flags.DEFINE_integer("max_steps", 2_000, "Steps of training of each flow.", lower_bound=1)
flags.DEFINE_float(
    "noise", None, "Standard deviation of the noise in training; default: falling.", lower_bound=0
)
flags.DEFINE_integer("seed", 0, "Seed of weights, folds and noise.")
flags.DEFINE_string("output_dir", None, "Output folder; default: results/<dataset>.")

FLAGS = flags.FLAGS

tfd = tfp.distributions

LogProb = Callable[[np.ndarray], np.ndarray]

_NUM_COMPONENTS = [1, 2, 3, 4, 6, 8, 12]
_BANDWIDTHS = np.geomspace(0.1, 2.0, 20)

_UCI_ARCHITECTURE = {
    "num_blocks": 2,
    "num_filters": 128,
    "activation": "relu",
    "transformer": "rational_quadratic_spline",
}
_UCI_LEARNING_RATE = 1e-3

# Mean log likelihood of test rows, in nats: table 1 of the paper, and for splines that of Durkan,
# Bekasov, Murray, Papamakarios: Neural spline flows.
_PUBLISHED = {
    model: dict(zip(_UCI, values, strict=True))
    for model, values in {
        "Real NVP (10)": (0.17, 8.33, -18.71, -13.84, 153.28),
        "MAF (10)": (0.24, 10.08, -17.73, -12.24, 154.93),
        "RQ-NSF, couplings": (0.64, 13.09, -14.75, -9.67, 157.54),
    }.items()
}
_MAX_CORRELATION = 0.98
_MAX_REPEATS = 5


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
    rows = load_table(FLAGS.dataset)
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
            num_couplings=FLAGS.num_couplings or 8,
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
    """Returns a table, float64 [N, D], without the targets of scikit-learn's.

    Args:
      name: one of scikit-learn's, or the path of a file: an `*.npy` array, or comma-separated text
        with or without a header.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it does not hold at least two rows of finite numbers.
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
    # The names of columns are no numbers.
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

    It is chosen whether distances are those of columns of variance 1, or of whitened rows.
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
    """Returns the standard deviation of each column, or 1 of a constant one."""
    stddev = rows.std(axis=0)
    return np.where(stddev > 0, stddev, 1.0)


def _covariance(rows: np.ndarray) -> np.ndarray:
    """Returns the covariance with the least variance that `GaussianMixture` has."""
    return np.atleast_2d(np.cov(rows.T, ddof=0)) + 1e-6 * np.eye(rows.shape[1])


def _inner_folds() -> KFold:
    return KFold(FLAGS.num_folds, shuffle=True, random_state=FLAGS.seed)


# The UCI tables.


def learn_uci(output_dir: pathlib.Path) -> list[dict]:
    """Returns the log likelihood of test rows by a flow, and published ones."""
    if FLAGS.data_dir is None:
        raise app.UsageError("--uci needs --data_dir, the folder of the tables.")
    splits = load_uci(FLAGS.uci, pathlib.Path(FLAGS.data_dir))
    train, validation, test = (splits[split] for split in ("train", "validation", "test"))
    size = train.shape[1]
    base = tfd.Sample(tfd.Normal(0.0, 1.0), [size])
    bijector = tfr.RealNVPVector(
        size,
        FLAGS.num_couplings or 10,
        **_UCI_ARCHITECTURE,
        standardization=tfr.Standardization.of(train),
    )
    model = tfr.FlowModel(tfd.TransformedDistribution(base, bijector))
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
        for name, by_table in _PUBLISHED.items()
    ]


def load_uci(name: str, folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the rows of `train`, `validation` and `test`, float32 [N, D].

    They are prepared as appendix D.1 and the code of the paper say.
    """
    loaders = {
        "power": _power,
        "gas": _gas,
        "hepmass": _hepmass,
        "miniboone": _miniboone,
        "bsds300": _bsds300,
    }
    rows = loaders[name](folder)
    splits = zip(("train", "validation", "test"), rows, strict=True)
    return {split: np.asarray(each, np.float32) for split, each in splits}


def _power(folder: pathlib.Path) -> list[np.ndarray]:
    rng = np.random.RandomState(42)
    rows = np.load(folder / "power" / "data.npy")
    rng.shuffle(rows)
    # Without global reactive power, mostly zero, and global intensity, which follows from others.
    rows = np.delete(rows, [1, 3], axis=1)
    # Uniform noise of the rounding width, drawn in the order of the published code. The columns are
    # active power, voltage, three meters and the time of the day.
    voltage, power, meters = (rng.rand(len(rows), columns) for columns in (1, 1, 3))
    time = np.zeros([len(rows), 1])
    rows = rows + np.hstack([0.001 * power, 0.01 * voltage, meters, time])
    return _standardized(_split(rows))


def _gas(folder: pathlib.Path) -> list[np.ndarray]:
    path = folder / "gas" / "ethylene_CO.pickle"
    if path.with_suffix(".npy").exists():
        rows = np.load(path.with_suffix(".npy"))
    else:
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError(f"Reading {path} needs pandas.") from error
        rows = pd.read_pickle(path).drop(columns=["Meth", "Eth", "Time"]).to_numpy()
    while (similar := (np.corrcoef(rows.T) > _MAX_CORRELATION).sum(axis=1) > 1).any():
        rows = np.delete(rows, np.argmax(similar), axis=1)
    # By the moments of all rows, those of the test included, as published.
    return _split((rows - rows.mean(axis=0)) / rows.std(axis=0, ddof=1))


def _hepmass(folder: pathlib.Path) -> list[np.ndarray]:
    with open(folder / "hepmass" / "1000_train.csv") as file:
        columns = range(len(file.readline().split(",")))
    train, test = (
        # Rows of the test have one more column.
        np.loadtxt(folder / "hepmass" / name, delimiter=",", skiprows=1, usecols=columns)
        for name in ("1000_train.csv", "1000_test.csv")
    )
    # The signal only, without its label.
    train, test = (rows[rows[:, 0] == 1, 1:] for rows in (train, test))
    mean, stddev = train.mean(axis=0), train.std(axis=0, ddof=1)
    train, test = (train - mean) / stddev, (test - mean) / stddev
    # The published code counts how often the least value occurs.
    kept = (train == train.min(axis=0)).sum(axis=0) <= _MAX_REPEATS
    train, test = train[:, kept], test[:, kept]
    number = int(0.1 * len(train))
    return [train[:-number], train[-number:], test]


def _miniboone(folder: pathlib.Path) -> list[np.ndarray]:
    return _standardized(_split(np.load(folder / "miniboone" / "data.npy")))


def _bsds300(folder: pathlib.Path) -> list[np.ndarray]:
    with h5py.File(folder / "BSDS300" / "BSDS300.hdf5") as file:
        return [file[split][:] for split in ("train", "validation", "test")]


def _split(rows: np.ndarray) -> list[np.ndarray]:
    """Returns training, validation and test rows: the last tenth is the test, as with the rest."""
    rows, test = np.split(rows, [len(rows) - int(0.1 * len(rows))])
    train, validation = np.split(rows, [len(rows) - int(0.1 * len(rows))])
    return [train, validation, test]


def _standardized(splits: list[np.ndarray]) -> list[np.ndarray]:
    """Returns the splits by the moments of all rows but those of the test."""
    rows = np.concatenate(splits[:2])
    mean, stddev = rows.mean(axis=0), rows.std(axis=0)
    return [(split - mean) / stddev for split in splits]


if __name__ == "__main__":
    app.run(main)
