"""The UCI tables of Papamakarios, Pavlakou, Murray: Masked autoregressive flow, table 1.

Reads the files that the authors published (https://doi.org/10.5281/zenodo.1161203) and prepares
them as appendix D.1 and the code of the paper say.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import h5py
import numpy as np

__all__ = ["NAMES", "PUBLISHED", "load"]

# Mean log likelihood of test rows, in nats: table 1 of the paper, and for splines that of Durkan,
# Bekasov, Murray, Papamakarios: Neural spline flows.
PUBLISHED = {
    model: dict(zip(("power", "gas", "hepmass", "miniboone", "bsds300"), values, strict=True))
    for model, values in {
        "Real NVP (10)": (0.17, 8.33, -18.71, -13.84, 153.28),
        "MAF (10)": (0.24, 10.08, -17.73, -12.24, 154.93),
        "RQ-NSF, couplings": (0.64, 13.09, -14.75, -9.67, 157.54),
    }.items()
}

_MAX_CORRELATION = 0.98
_MAX_REPEATS = 5


def load(name: str, folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the rows of `train`, `validation` and `test`, float32 [N, D].

    Args:
      name: one of `NAMES`.
      folder: with `power/data.npy`, `gas/ethylene_CO.pickle`, `hepmass/1000_train.csv` and
        `1000_test.csv`, `miniboone/data.npy`, `BSDS300/BSDS300.hdf5`. Reading the pickle needs
        pandas; instead there can be an `ethylene_CO.npy` of it, without the columns `Meth`, `Eth`
        and `Time`.

    Raises:
      FileNotFoundError: if a file is missing.
    """
    rows = _LOADERS[name](pathlib.Path(folder))
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
            raise ImportError(f"Reading {path} needs pandas, see `load`.") from error
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


_LOADERS: dict[str, Callable[[pathlib.Path], list[np.ndarray]]] = {
    "power": _power,
    "gas": _gas,
    "hepmass": _hepmass,
    "miniboone": _miniboone,
    "bsds300": _bsds300,
}

NAMES = tuple(_LOADERS)
