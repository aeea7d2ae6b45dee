"""Trains a flow on a table of the UCI benchmark, and prints published results for comparison.

    python examples/train_uci.py --table=power --data_dir=... --limit_minutes=60

The tables and splits are from Papamakarios, Pavlakou, Murray: Masked autoregressive flow.
`--data_dir` is a folder of the files that the authors published
(https://doi.org/10.5281/zenodo.1161203): `power/data.npy`, `gas/ethylene_CO.pickle`,
`hepmass/1000_train.csv` and `1000_test.csv`, `miniboone/data.npy`, `BSDS300/BSDS300.hdf5`. Reading
the pickle needs pandas; an `ethylene_CO.npy` without the columns `Meth`, `Eth` and `Time` can
replace it.

The script prints the mean log likelihoods of test rows, and writes them to `results.json` in the
output folder. The same command resumes a killed run. Raise `--limit_minutes` to continue a finished
run.
"""

from __future__ import annotations

import json
import os
import pathlib

# TensorFlow uses oneDNN by default only on processors with AVX-512 VNNI or AVX-VNNI instructions.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import h5py
import keras
import numpy as np
import scipy.stats
import tensorflow_probability as tfp
from absl import app, flags, logging

import tfp_realnvp as tfr

_TABLES = ("power", "gas", "hepmass", "miniboone", "bsds300")

flags.DEFINE_enum("table", None, _TABLES, "The table.", required=True)
flags.DEFINE_string("data_dir", None, "Folder of the tables, see above.", required=True)
flags.DEFINE_float("limit_minutes", 30.0, "Training time.")
flags.DEFINE_integer("num_couplings", 10, "Couplings of the flow.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Seed of the weights.")
flags.DEFINE_string("output_dir", None, "Output folder; default: results/<table>.")

FLAGS = flags.FLAGS

tfd = tfp.distributions

_LEARNING_RATE = 1e-3

# Published mean log likelihoods of test rows in nats, from table 1 of the paper and, for RQ-NSF,
# from Durkan, Bekasov, Murray, Papamakarios: Neural spline flows.
_PUBLISHED = {
    model: dict(zip(_TABLES, values, strict=True))
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
    output_dir = pathlib.Path(FLAGS.output_dir or f"results/{FLAGS.table}")
    splits = load_table(FLAGS.table, pathlib.Path(FLAGS.data_dir))
    train, validation, test = (splits[split] for split in ("train", "validation", "test"))
    size = train.shape[1]
    bijector = tfr.RealNVPVector(
        size,
        FLAGS.num_couplings,
        num_blocks=2,
        num_filters=128,
        activation="relu",
        transformer="rational_quadratic_spline",
        standardization=tfr.Standardization.of(train),
    )
    base = tfd.Sample(tfd.Normal(0.0, 1.0), [size])
    model = tfr.FlowModel(tfd.TransformedDistribution(base, bijector))
    model.compile(tfr.FusedAdam(_LEARNING_RATE, global_clipnorm=10.0))
    print(
        f"{FLAGS.table}: {len(train):,} rows of {size} columns, {model.count_params():,} parameters"
    )
    budget = tfr.LearningRateBudget(_LEARNING_RATE, seconds=60 * FLAGS.limit_minutes)
    checkpoint = tfr.TrainingCheckpoint(output_dir, model, budget=budget)
    if checkpoint.restore():
        print(f"resuming after step {int(model.optimizer.iterations.numpy()):,}")
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

    normal = scipy.stats.multivariate_normal(train.mean(axis=0), np.cov(train.T))
    results = {}
    for name, log_probs in (
        ("Real NVP", model.predict(test, batch_size=4_096, verbose=0)),
        ("normal distribution", normal.logpdf(test)),
    ):
        mean, error = np.mean(log_probs), np.std(log_probs) / np.sqrt(len(test))
        results[name] = float(mean), float(error)
        print(f"{name}: {mean:.3f} ± {error:.3f} nats a row")
    for name, values in _PUBLISHED.items():
        results[f"{name}, published"] = (values[FLAGS.table],)
        print(f"{name}, published: {values[FLAGS.table]:.2f}")
    (output_dir / "results.json").write_text(json.dumps(results, indent=2))
    print(f"results are in {output_dir}")


# The tables.


def load_table(name: str, folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the rows of `train`, `validation` and `test`, float32 [N, D].

    The preparation follows appendix D.1 and the code of the paper.
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
    # Drops global reactive power, which is mostly zero, and global intensity, which the other
    # columns determine.
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
    # As in the published code, the moments include the test rows.
    return _split((rows - rows.mean(axis=0)) / rows.std(axis=0, ddof=1))


def _hepmass(folder: pathlib.Path) -> list[np.ndarray]:
    with open(folder / "hepmass" / "1000_train.csv") as file:
        columns = range(len(file.readline().split(",")))
    train, test = (
        # The file of test rows has one more column.
        np.loadtxt(folder / "hepmass" / name, delimiter=",", skiprows=1, usecols=columns)
        for name in ("1000_train.csv", "1000_test.csv")
    )
    # Keeps only the signal, label 1, and drops the column of labels.
    train, test = (rows[rows[:, 0] == 1, 1:] for rows in (train, test))
    mean, stddev = train.mean(axis=0), train.std(axis=0, ddof=1)
    train, test = (train - mean) / stddev, (test - mean) / stddev
    # Like the published code, drops columns whose least value occurs too often.
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
    """Splits off the last tenth of the rows for testing, then the last tenth for validation."""
    rows, test = np.split(rows, [len(rows) - int(0.1 * len(rows))])
    train, validation = np.split(rows, [len(rows) - int(0.1 * len(rows))])
    return [train, validation, test]


def _standardized(splits: list[np.ndarray]) -> list[np.ndarray]:
    """Returns the splits, standardized by the moments of training and validation rows."""
    rows = np.concatenate(splits[:2])
    mean, stddev = rows.mean(axis=0), rows.std(axis=0)
    return [(split - mean) / stddev for split in splits]


if __name__ == "__main__":
    app.run(main)
