"""Tables of numbers: scikit-learn's, and files."""

from __future__ import annotations

import pathlib

import numpy as np
from sklearn import datasets

__all__ = ["EMBEDDED", "dequantize", "load", "rounding_widths"]

EMBEDDED = ("wine", "breast_cancer", "diabetes", "digits")

_MAX_DECIMALS = 9


def load(name: str) -> np.ndarray:
    """Returns a table, float64 [N, D], without the targets of scikit-learn's.

    Args:
      name: one of `EMBEDDED`, or the path of a file: an `*.npy` array, or comma-separated text with
        or without a header.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it does not hold at least two rows of finite numbers.
    """
    if name in EMBEDDED:
        options = {"scaled": False} if name == "diabetes" else {}
        return np.asarray(getattr(datasets, f"load_{name}")(**options).data, np.float64)
    path = pathlib.Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"Expected one of {', '.join(EMBEDDED)}, or a file, got {name!r}.")
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


def rounding_widths(rows: np.ndarray) -> np.ndarray:
    """Returns the power of ten to which a column is rounded, by the median of its values, [D].

    Args:
      rows: [N, D].
    """
    decimals = np.full(rows.shape, _MAX_DECIMALS)
    for number in range(_MAX_DECIMALS - 1, -1, -1):
        decimals[np.round(rows, number) == rows] = number
    return 10.0 ** -np.median(decimals, axis=0)


def dequantize(rows: np.ndarray, seed: int) -> np.ndarray:
    """Returns the rows plus uniform noise of the width to which each column is rounded.

    A density of rounded values has no upper bound: it can rise without limit at a value that occurs
    often. With the noise, its log is at most the log probability of the rounded row, on average.

    Args:
      rows: [N, D].
      seed: of the noise.
    """
    noise = np.random.default_rng(seed).uniform(size=rows.shape)
    return rows + noise * rounding_widths(rows)
