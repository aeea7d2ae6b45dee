"""Rows of a table with weights, where a row of weight two is the same as that row twice.

Equal rows are merged into one by `merge`. What is computed from merged rows, random choices
included, is then a function of the table as a set of weighted rows: neither the order of the rows
nor their repetition matters.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

__all__ = ["Rows", "checked_weights", "folds", "merge"]


class Rows(NamedTuple):
    """Distinct rows [N, D] of positive weights [N]."""

    values: np.ndarray
    weights: np.ndarray

    def where(self, is_chosen: np.ndarray) -> Rows:
        """Returns some of the rows."""
        return Rows(self.values[is_chosen], self.weights[is_chosen])

    @property
    def number(self) -> float:
        """The number of equal weights that say as much, at most N.

        Source: Kish: Survey sampling, 1965, section 11.7.
        """
        return self.weights.sum() ** 2 / (self.weights**2).sum()

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
    table = np.column_stack([groups, rows]) + 0.0  # -0.0 becomes 0.0
    table, indices = np.unique(table, axis=0, return_inverse=True)
    return table[:, 1:], table[:, 0].astype(int), np.bincount(indices.ravel(), weights)


def folds(weights: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the fold of each distinct row, [N], of `number` ones or of N if that is less.

    Copies of a row are in one fold, since a row is known from any of its copies. Heavy rows are
    dealt out first, so that each fold has its share of them.
    """
    order = rng.permutation(len(weights))
    order = order[np.argsort(-weights[order], kind="stable")]
    result = np.empty(len(weights), int)
    result[order] = np.arange(len(weights)) % number
    return result
