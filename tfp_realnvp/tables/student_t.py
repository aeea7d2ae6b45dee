"""Student t distributions of the rows of a table, also of some columns given others."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from tfp_realnvp.tables.numerics import even_points
from tfp_realnvp.tables.weighted_rows import Rows

__all__ = ["StudentT", "fit_student_t"]

_NUM_NODES, _NUM_NODES_OF_ONE = 256, 64
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
        return latents @ np.linalg.inv(self.matrix) + self.mean + conditions @ self.slopes

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
        return self.cdf_of_latents(np.sign(self.matrix[0, 0]) * self.latents(rows)[:, 0])

    def cdf_of_latents(self, latents: np.ndarray) -> np.ndarray:
        """Returns the probability of smaller independent variables, of the same shape."""
        return stdtr(self.df, latents)

    def quantiles(self, uniforms: np.ndarray) -> np.ndarray:
        """Returns Student t variables from ones that are uniform in (0, 1)."""
        return stdtrit(self.df, uniforms)

    def nodes(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns latents [P, D] and their weights [P], for means of functions of the latents.

        For one latent it is the midpoint rule, closer in the tails; for several ones quasi-Monte
        Carlo.
        """
        size = len(self.matrix)
        if size > 1:
            uniforms, weights = even_points(_NUM_NODES, size), np.ones(_NUM_NODES)
        else:
            middles = (np.arange(_NUM_NODES_OF_ONE)[:, np.newaxis] + 0.5) / _NUM_NODES_OF_ONE
            uniforms = middles**2 * (3 - 2 * middles)
            weights = (middles * (1 - middles))[:, 0]
        return self.quantiles(uniforms), weights / weights.sum()

    def sample(self, conditions: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """Returns events [N, D] given conditions [N, C] from uniform numbers [N, 1 + D]."""
        return self.events(self.quantiles(uniforms[:, 1:]), conditions)


def fit_student_t(
    splits: list[tuple[Rows, Rows]], widths: np.ndarray, df: float, num_conditions: int = 0
) -> list[StudentT]:
    """Returns for each split the affine map that gives training rows the identity as covariance.

    The slopes are from ridge regression, with the penalty that gives held-out rows the least
    errors. The covariance C of the other errors, with uniform noise of these widths, becomes
    (1 - a) C + a I, with the factor a for which held-out rows are most probable.
    """
    slopes = _ridge_slopes(splits, num_conditions)
    means, variances, axes = [], [], []
    log_likelihoods = np.zeros(len(_SHRINKAGES))
    for slope, split in zip(slopes, splits, strict=True):
        train, held_out = (_errors(rows, slope) for rows in split)
        mean, covariance = train.covariance()
        eigen = np.linalg.eigh(covariance + np.diag(widths**2 / 12))
        means.append(mean)
        variances.append(eigen[0].clip(min=0.0))
        axes.append(eigen[1])
        squares = ((held_out.values - mean) @ axes[-1]) ** 2
        for i, shrinkage in enumerate(_SHRINKAGES):
            shrunk = (1 - shrinkage) * variances[-1] + shrinkage
            log_prob = -(df + 1) / 2 * np.log1p(squares / shrunk / df) - np.log(shrunk) / 2
            log_likelihoods[i] += held_out.weights @ log_prob.sum(axis=1)
    # A single row is not held out, and says nothing about the covariance.
    shrinkage = _SHRINKAGES[log_likelihoods.argmax()] if len(splits) > 1 else 1.0
    starts = []
    for mean, slope, variance, axis in zip(means, slopes, variances, axes, strict=True):
        stddev = np.sqrt((1 - shrinkage) * variance + shrinkage)
        starts.append(StudentT(mean, slope, axis / stddev, -np.log(stddev).sum(), df))
    return starts


def _errors(rows: Rows, slopes: np.ndarray) -> Rows:
    """Returns what a linear map of the conditions leaves of the events, up to a constant."""
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
