"""Columns of a table: how they are standardized, and how they have been rounded."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np

from tfp_realnvp.internal.data_frames import listed

__all__ = ["Columns", "rounding_widths", "warn_of_few_values", "warn_of_redundant_columns"]

_LEAST_VARIANCE = 1e-6
# Rounding counts where its width is at least this part of a standard deviation.
_COARSE_ROUNDING = 0.1
# A column is rounded if this part of its distinct values has few decimals.
_ROUNDED_PART, _MAX_DECIMALS = 0.75, 9
# A column takes few values if this part of its rows has values that occur in so many rows.
_DISCRETE_PART, _DISCRETE_ROWS = 0.9, 5
# Squares of larger numbers, and of smaller ones than the inverse, leave the range of float64.
_MAX_MAGNITUDE = 1e150
# `warnings.warn` < the functions below < `_fit` < `fit_or_keep` < `fit` < its caller
_STACK_LEVEL = 5


@dataclasses.dataclass(frozen=True)
class Columns:
    """What is known of the columns of a table, each an array [D].

    Attributes:
      center: the means, or the values of constant columns.
      scale: the standard deviations with the rounding, or the sizes of constant columns.
      is_constant: whether all rows have the same value.
      widths: of the noise of coarsely rounded columns, in their own units, and 0 for others.
      takes_few_values: whether a column is rounded coarsely, and its values are well known.
    """

    center: np.ndarray
    scale: np.ndarray
    is_constant: np.ndarray
    widths: np.ndarray
    takes_few_values: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, weights: np.ndarray, dequantize: bool, caller: str) -> Columns:
        """Returns what distinct rows [N, D] of weights [N] say.

        Raises:
          ValueError: if squares of the numbers are too large or too small for float64.
        """
        rounding = rounding_widths(rows)
        widths = dequantize * rounding
        scale = _scales(rows, weights, widths, caller)
        is_coarse = rounding >= _COARSE_ROUNDING * scale
        is_constant = (rows == rows[:1]).all(axis=0)
        center = np.average(rows, axis=0, weights=weights)
        return cls(
            np.where(is_constant, rows[0], center),
            scale,
            is_constant,
            widths * is_coarse,
            (rounding > 0) & is_coarse & _have_known_values(rows),
        )

    def standardized(self, rows: np.ndarray) -> np.ndarray:
        """Returns rows [..., D], float64, whose columns have mean 0 and variance 1."""
        return (rows.astype(np.float64) - self.center) / self.scale

    def in_units(self, rows: np.ndarray) -> np.ndarray:
        """Returns standardized rows [..., D] in the units of the columns."""
        return self.center + np.where(self.is_constant, 0.0, self.scale) * rows

    @property
    def log_det(self) -> float:
        """The log det of the Jacobian of `standardized`."""
        return -np.log(self.scale).sum()

    def standardized_widths(self) -> np.ndarray:
        """Returns the widths of the noise of standardized columns, [D]."""
        return self.widths / self.scale

    def least_variances(self) -> list[np.ndarray]:
        """Returns variances [D] of standardized columns, each for normal mixtures of their own.

        All rounded columns are smoothed, or only the rounded columns that take many values.
        """
        of_rounding = self.standardized_widths() ** 2 / 12
        smooth = _LEAST_VARIANCE + of_rounding
        sharp = np.where(self.takes_few_values, _LEAST_VARIANCE * (1 - of_rounding), smooth)
        return [smooth] if (sharp == smooth).all() else [smooth, sharp]


def rounding_widths(rows: np.ndarray) -> np.ndarray:
    """Returns the step of which three quarters of the values of a column are multiples, [D].

    Steps are powers of ten and their halves; 0 stands for none. Each value counts once, in however
    many rows it is: exact zeros and ones, like hours without rain, do not tell how other numbers
    are rounded.
    """

    def of_column(column: np.ndarray) -> float:
        values = np.unique(column)
        with np.errstate(over="ignore", invalid="ignore"):
            # float32 numbers have few decimals as float32 only. Beside others they are float64.
            short = values.astype(np.float32)
            values = short if (short == values).all() else values
            for number in range(_MAX_DECIMALS):
                for parts in (1, 2):
                    multiples = np.round(parts * values, number) == parts * values
                    if multiples.mean() >= _ROUNDED_PART:
                        return 10.0**-number / parts
        return 0.0

    return np.array([of_column(column) for column in rows.T])


def _have_known_values(rows: np.ndarray) -> np.ndarray:
    """Returns whether most rows without the most frequent value of a column share theirs, [D]."""

    def of_column(column: np.ndarray) -> bool:
        counts = np.sort(np.unique(column, return_counts=True)[1])[:-1]
        return counts[counts >= _DISCRETE_ROWS].sum() >= _DISCRETE_PART * max(counts.sum(), 1)

    return np.array([of_column(column) for column in rows.T])


def _scales(rows: np.ndarray, weights: np.ndarray, widths: np.ndarray, caller: str) -> np.ndarray:
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


def warn_of_few_values(columns: Columns, names: list[str], caller: str) -> None:
    """Warns of columns that take few values, whose density has peaks at them."""
    if columns.takes_few_values.any():
        some = listed(names[i] for i in np.flatnonzero(columns.takes_few_values))
        warnings.warn(
            f"{caller}: some columns are rounded and take few values: {some}. score_samples is a "
            "density, with narrow peaks at these values. It is not their probability, can be "
            "greater than 1, and cannot be compared with a density whose peaks have another width. "
            "For probabilities of the values of one column, make it the y of a FlowRegressor.",
            UserWarning,
            stacklevel=_STACK_LEVEL,
        )


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
            stacklevel=_STACK_LEVEL,
        )
