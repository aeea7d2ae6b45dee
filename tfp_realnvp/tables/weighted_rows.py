"""Rows of a table with weights, where a row of weight two is the same as that row twice.

Equal rows are merged into one by `merge`. What is computed from merged rows, random choices
included, is then a function of the table as a set of weighted rows: neither the order of the rows
nor their repetition matters.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np

from tfp_realnvp.internal.frames import listed

__all__ = [
    "Rows",
    "checked_weights",
    "column_scales",
    "fold_weights",
    "is_discrete",
    "merge",
    "rounding_widths",
    "warn_of_redundant_columns",
]

_MAX_DECIMALS = 9
# Squares of larger numbers, and of smaller ones than the inverse, leave the range of float64.
_MAX_MAGNITUDE = 1e150


class Rows(NamedTuple):
    """Rows [N, D] of positive weights [N]."""

    values: np.ndarray
    weights: np.ndarray

    def with_weights(self, weights: np.ndarray) -> Rows:
        """Returns the rows with other weights, without those of weight zero."""
        return Rows(self.values[weights > 0], weights[weights > 0])

    @property
    def number(self) -> float:
        """Number of rows, where weights count repetitions and are not parts of a single row."""
        return max(self.weights.sum(), len(self.weights))

    def mean_and_error(self, values: np.ndarray) -> tuple[float, float]:
        """Returns the mean of a value of each row, and its standard error."""
        mean = np.average(values, weights=self.weights)
        variance = np.average((values - mean) ** 2, weights=self.weights)
        return float(mean), float(np.sqrt(variance / self.number))

    def covariance(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the mean [D] and the covariance [D, D] of the rows."""
        mean = np.average(self.values, axis=0, weights=self.weights)
        shifted = self.values - mean
        return mean, (self.weights * shifted.T) @ shifted / self.weights.sum()

    def draw(self, shape: list[int], rng: np.random.Generator) -> np.ndarray:
        """Returns rows [*shape, D], drawn with replacement."""
        ends = np.cumsum(self.weights)
        return self.values[np.searchsorted(ends, ends[-1] * rng.random(shape), side="right")]


def checked_weights(weights: Any, number: int, caller: str) -> np.ndarray:
    """Returns nonnegative weights [number], float64; `None` stands for ones."""
    if weights is None:
        return np.ones(number)
    expected = f"{caller}: expected sample_weight of {number} nonnegative numbers, one for each row"
    try:
        weights = np.asarray(weights, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{expected}, got {weights!r}.") from error
    if weights.shape != (number,):
        raise ValueError(f"{expected}, got the shape {weights.shape}.")
    if not (np.isfinite(weights) & (weights >= 0)).all():
        (index,) = np.nonzero(~(np.isfinite(weights) & (weights >= 0)))
        raise ValueError(f"{expected}, got {weights[index[0]]} for row {index[0]}.")
    if not weights.any():
        raise ValueError(f"{expected}, got zeros only; leave out rows of weight zero instead.")
    return weights


def merge(
    rows: np.ndarray, groups: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns distinct rows in a fixed order, their groups, and the sums of their weights.

    Args:
      rows: [N, D].
      groups: whole numbers [N]. Equal rows of two groups are distinct.
      weights: positive [N].
    """
    rows = rows + np.zeros([], rows.dtype)  # -0.0 becomes 0.0
    order = np.lexsort([*rows.T[::-1], groups])
    rows, groups = rows[order], groups[order]
    is_new = np.append(True, (rows[1:] != rows[:-1]).any(axis=1) | (groups[1:] != groups[:-1]))
    return rows[is_new], groups[is_new], np.bincount(np.cumsum(is_new) - 1, weights[order])


def fold_weights(weights: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the weight of each row in each fold, [number of folds, N].

    A row of weight two falls into two folds with a weight of one, as the row twice would. The sum
    over folds is `weights`. There are fewer folds where there are fewer than `number` rows.
    """
    shares = np.clip(np.floor(weights + 1e-9), 1, number).astype(int)
    number = min(number, shares.sum())
    folds = np.zeros([number, len(weights)])
    order = rng.permutation(len(weights))
    indices = np.repeat(order, shares[order])
    folds[np.arange(len(indices)) % number, indices] = (weights / shares)[indices]
    return folds


def rounding_widths(rows: np.ndarray) -> np.ndarray:
    """Returns the power of ten to which at least half of the values of a column are rounded, [D].

    It is 0 if there is none. Each value counts once, in however many rows it is: exact zeros and
    ones, like hours without rain, do not tell how other numbers are rounded.
    """

    def of_column(column: np.ndarray) -> float:
        values = np.unique(column)
        decimals = np.full(values.shape, _MAX_DECIMALS)
        with np.errstate(over="ignore", invalid="ignore"):
            # float32 numbers have few decimals as float32 only. Beside others they are float64.
            short = values.astype(np.float32)
            values = short if (short == values).all() else values
            for number in range(_MAX_DECIMALS - 1, -1, -1):
                decimals[np.round(values, number) == values] = number
        number = np.sort(decimals)[(len(decimals) - 1) // 2]
        return 10.0**-number if number < _MAX_DECIMALS else 0.0

    return np.array([of_column(column) for column in rows.T])


def is_discrete(rows: np.ndarray, weights: np.ndarray, least: float, part: float) -> np.ndarray:
    """Returns whether a column takes few values, which are well known, [D].

    These are columns where, of the rows without the most frequent value, at least `part` have a
    value that occurs `least` times.
    """

    def of_column(column: np.ndarray) -> bool:
        _, indices = np.unique(column, return_inverse=True)
        counts = np.sort(np.bincount(indices, weights))[:-1]
        return len(counts) > 0 and counts[counts >= least - 1e-9].sum() >= part * counts.sum()

    return np.array([of_column(column) for column in rows.T])


def column_scales(
    rows: np.ndarray, weights: np.ndarray, widths: np.ndarray, caller: str
) -> np.ndarray:
    """Returns the standard deviation of each column with its rounding, or the size of a constant.

    Raises:
      ValueError: if squares of the numbers are too large or too small for float64.
    """
    largest = abs(rows).max(axis=0)
    # As parts of the largest, whose squares are in range.
    parts = rows / np.where(largest > 0, largest, 1.0)
    stddev = np.sqrt(weights @ (parts - weights @ parts / weights.sum()) ** 2 / weights.sum())
    is_constant = stddev <= 1e-12
    stddev *= largest
    in_range = (largest < _MAX_MAGNITUDE) & (is_constant | (stddev > 1 / _MAX_MAGNITUDE))
    if not in_range.all():
        column = int(np.argmin(in_range))
        raise ValueError(
            f"{caller}: expected columns whose numbers can be squared in float64, got magnitudes "
            f"of up to {largest[column]:.3g} with a standard deviation of {stddev[column]:.3g} in "
            f"column {column}. Rescale the columns first: X / abs(X).max(axis=0)."
        )
    scales = np.sqrt(stddev**2 + widths**2 / 12)
    return np.where(scales > 1e-12 * largest, scales, np.where(largest > 0, largest, 1.0))


def warn_of_redundant_columns(rows: np.ndarray, names: list[str], caller: str) -> None:
    """Warns of columns that are constant, or equal to others.

    The density of such columns is limited only by what an estimator adds to their variance.
    """
    is_constant = (rows == rows[:1]).all(axis=0)
    _, first, indices = np.unique(rows, axis=1, return_index=True, return_inverse=True)
    first = first[indices.ravel()]
    is_copy = ~is_constant & (first != np.arange(len(first)))
    notes = []
    if is_constant.any():
        notes.append("constant: " + listed(names[i] for i in np.flatnonzero(is_constant)))
    if is_copy.any():
        pairs = (f"{names[i]} (equals {names[first[i]]})" for i in np.flatnonzero(is_copy))
        notes.append("copies of others: " + listed(pairs))
    if notes:
        warnings.warn(
            f"{caller}: some columns say nothing about a row beside the others, and add a constant "
            f"to log densities that depends on regularization alone; {'; '.join(notes)}. "
            "Remove them for comparable densities.",
            UserWarning,
            stacklevel=3,
        )
