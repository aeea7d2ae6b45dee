"""Student t distributions of the rows of a table, also of some columns given others."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from tfp_realnvp.tables.table import Rows

__all__ = ["StudentT", "fit_student_t"]

_SHRINKAGES = np.geomspace(1e-4, 1.0, 17)
_PENALTIES = np.geomspace(1e-4, 1e2, 13)


class StudentT(NamedTuple):
    """Independent Student t variables after an affine map of events, given conditions.

    Rows [C + D] are conditions and events, `latents = (events - mean - conditions slopes) matrix`.

    Attributes:
      mean: [D].
      slopes: [C, D], with C = 0 for a density without conditions.
      matrix: [D, D].
      log_det: log |det matrix|.
      df: degrees of freedom.
    """

    mean: np.ndarray
    slopes: np.ndarray
    matrix: np.ndarray
    log_det: float
    df: float

    def latents(self, rows: np.ndarray) -> np.ndarray:
        """Returns the independent variables of rows, [N, D]."""
        conditions, events = np.split(rows, [len(self.slopes)], axis=-1)
        return (events - self.mean - conditions @ self.slopes) @ self.matrix

    def events(self, latents: np.ndarray, conditions: np.ndarray) -> np.ndarray:
        """Returns the events of independent variables, [N, D]."""
        return latents @ np.linalg.inv(self.matrix) + self.mean_of_events(conditions)

    def rotated(self, rng: np.random.Generator) -> StudentT:
        """Returns the same map before a random rotation, which is another density."""
        rotation = np.linalg.qr(rng.normal(size=self.matrix.shape))[0]
        return self._replace(matrix=self.matrix @ rotation)

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        """Returns the log density of the events of rows given their conditions, [N]."""
        df = self.df
        log_constant = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - math.log(df * math.pi) / 2
        log_kernels = -(df + 1) / 2 * np.log1p(self.latents(rows) ** 2 / df)
        return (log_constant + log_kernels).sum(axis=1) + self.log_det

    def mean_of_events(self, conditions: np.ndarray) -> np.ndarray:
        """Returns the mean of events given conditions, [N, D]."""
        return self.mean + conditions @ self.slopes

    def cdf(self, rows: np.ndarray) -> np.ndarray:
        """Returns the cumulative distribution function at the rows of a single column, [N]."""
        return stdtr(self.df, np.sign(self.matrix[0, 0]) * self.latents(rows)[:, 0])

    def random_latents(self, uniforms: np.ndarray) -> np.ndarray:
        """Returns independent Student t variables from ones that are uniform in (0, 1)."""
        return stdtrit(self.df, uniforms)

    def sample(self, conditions: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """Returns events [N, D] given conditions [N, C] from uniform numbers [N, 1 + D]."""
        return self.events(self.random_latents(uniforms[:, 1:]), conditions)


def fit_student_t(
    splits: list[tuple[Rows, Rows]], widths: np.ndarray, df: float, num_conditions: int = 0
) -> list[StudentT]:
    """Returns for each split the affine map that gives training rows the identity as covariance.

    The slopes are from ridge regression, with the penalty that gives held-out rows the least
    errors. The covariance C of the errors, with uniform noise of these widths, becomes
    (1 - a) C + a I, with the factor a that makes held-out rows most probable.
    """
    slopes = _ridge_slopes(splits, num_conditions)
    fits = []
    log_likelihoods = np.zeros(len(_SHRINKAGES))
    for slope, split in zip(slopes, splits, strict=True):
        train, held_out = (_errors(rows, slope) for rows in split)
        mean, covariance = train.covariance()
        variances, axes = np.linalg.eigh(covariance + np.diag(widths**2 / 12))
        variances = variances.clip(min=0.0)
        fits.append((mean, slope, variances, axes))
        squares = ((held_out.values - mean) @ axes) ** 2
        for i, shrinkage in enumerate(_SHRINKAGES):
            shrunk = (1 - shrinkage) * variances + shrinkage
            log_prob = -(df + 1) / 2 * np.log1p(squares / shrunk / df) - np.log(shrunk) / 2
            log_likelihoods[i] += held_out.weights @ log_prob.sum(axis=1)
    # A single row is not held out, and says nothing about the covariance.
    shrinkage = _SHRINKAGES[log_likelihoods.argmax()] if len(splits) > 1 else 1.0
    starts = []
    for mean, slope, variances, axes in fits:
        stddev = np.sqrt((1 - shrinkage) * variances + shrinkage)
        starts.append(StudentT(mean, slope, axes / stddev, -np.log(stddev).sum(), df))
    return starts


def _errors(rows: Rows, slopes: np.ndarray) -> Rows:
    """Returns the events of rows minus a linear map of their conditions."""
    conditions, events = np.split(rows.values, [len(slopes)], axis=1)
    return Rows(events - conditions @ slopes, rows.weights)


def _ridge_slopes(splits: list[tuple[Rows, Rows]], num_conditions: int) -> list[np.ndarray]:
    """Returns the slopes [C, D] of each split, with the penalty that is best on held-out rows."""
    number = num_conditions
    slopes = np.zeros([len(_PENALTIES), len(splits), number, splits[0][0].values.shape[1] - number])
    if number == 0 or len(splits) == 1:
        return list(slopes[0])
    errors = np.zeros(len(_PENALTIES))
    for j, (train, held_out) in enumerate(splits):
        mean, covariance = train.covariance()
        values, axes = np.linalg.eigh(covariance[:number, :number])
        products = axes.T @ covariance[:number, number:]
        for i, penalty in enumerate(_PENALTIES):
            slopes[i, j] = axes @ (products / (values.clip(min=0.0) + penalty)[:, np.newaxis])
            shifted = held_out._replace(values=held_out.values - mean)
            errors[i] += held_out.weights @ (_errors(shifted, slopes[i, j]).values ** 2).sum(axis=1)
    return list(slopes[errors.argmin()])
