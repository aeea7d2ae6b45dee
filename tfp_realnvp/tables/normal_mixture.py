"""Mixtures of normal distributions of weighted rows, also of some columns given others.

Plain NumPy: for some thousands of rows it is done before TensorFlow has traced a training step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri
from sklearn.cluster import kmeans_plusplus

from tfp_realnvp.tables.table import Rows

__all__ = ["ConditionalMixture", "NormalMixture", "fit_normal_mixtures"]

# Added to the variances of standardized conditions, in joint distributions with events.
_LEAST_CONDITION_VARIANCE = 0.01
_NUM_COMPONENTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_NUM_KEPT_MIXTURES = 3
# EM converges on small tables; on large ones its steps are capped to a few seconds.
_MIN_STEPS, _MAX_STEPS, _MAX_ROW_STEPS = 40, 150, 300_000
_TOLERANCE = 1e-5
_CLUSTERING_STEPS = 10


class NormalMixture(NamedTuple):
    """A mixture of K normal distributions.

    Attributes:
      log_weights: [K].
      means: [K, D].
      matrices: upper triangular [K, D, D]; they map deviations from the mean to independent numbers
        of variance 1.
    """

    log_weights: np.ndarray
    means: np.ndarray
    matrices: np.ndarray

    @classmethod
    def fit(
        cls,
        rows: Rows,
        number: int,
        is_diagonal: bool,
        least_variance: np.ndarray,
        seed: int,
        max_steps: int = _MAX_STEPS,
    ) -> NormalMixture:
        """Returns the mixture after expectation maximization, from clusters by k-means.

        Args:
          rows: whose columns have variances of about 1.
          number: of components.
          is_diagonal: whether the columns of a component are independent.
          least_variance: is added to the variance of each column in each component, [D].
          seed: for the first centers of clusters.
          max_steps: largest number of steps.
        """
        shares = _clusters(rows, number, seed)
        log_likelihood = -math.inf
        for _ in range(min(max_steps, max(_MAX_ROW_STEPS // len(shares), _MIN_STEPS))):
            mixture = cls._of_shares(rows, shares, is_diagonal, least_variance)
            log_probs, shares = _log_sum_exp(mixture.joint_log_probs(rows.values))
            before, log_likelihood = log_likelihood, np.average(log_probs, weights=rows.weights)
            if log_likelihood - before < _TOLERANCE:
                break
        return mixture

    @classmethod
    def _of_shares(
        cls, rows: Rows, shares: np.ndarray, is_diagonal: bool, least_variance: np.ndarray
    ) -> NormalMixture:
        """Returns the mixture given the share of each component in each row, [N, K]."""
        shares = shares * rows.weights[:, np.newaxis]
        sizes = shares.sum(axis=0) + 1e-12
        means = (shares.T @ rows.values) / sizes[:, np.newaxis]
        matrices = []
        for mean, share, size in zip(means, shares.T, sizes, strict=True):
            shifted = rows.values - mean
            covariance = (share * shifted.T) @ shifted / size + np.diag(least_variance)
            if is_diagonal:
                covariance = np.diag(np.diag(covariance))
            matrices.append(np.linalg.inv(np.linalg.cholesky(covariance)).T)
        return cls(np.log(sizes / sizes.sum()), means, np.stack(matrices))

    def joint_log_probs(self, rows: np.ndarray) -> np.ndarray:
        """Returns the log density of each row and component, times its weight, [N, K]."""
        joint = np.empty([len(rows), len(self.means)])
        for i, (mean, matrix) in enumerate(zip(self.means, self.matrices, strict=True)):
            joint[:, i] = _normal_log_prob((rows - mean) @ matrix, matrix)
        return joint + self.log_weights

    def given(self, is_condition: np.ndarray) -> ConditionalMixture:
        """Returns the distribution of other columns given those where `is_condition` [D] holds."""
        given, other = np.flatnonzero(is_condition), np.flatnonzero(~is_condition)
        inverses = np.linalg.inv(self.matrices)
        covariances = np.swapaxes(inverses, 1, 2) @ inverses
        of_given, shared, of_other = (
            covariances[:, rows[:, np.newaxis], columns]
            for rows, columns in ((given, given), (given, other), (other, other))
        )
        slopes = np.linalg.solve(of_given, shared)
        means = self.means[:, other] - np.einsum("kc,kcd->kd", self.means[:, given], slopes)
        rest = of_other - np.swapaxes(shared, 1, 2) @ slopes
        matrices = np.swapaxes(np.linalg.inv(np.linalg.cholesky(of_given)), 1, 2)
        factors = np.swapaxes(np.linalg.cholesky(rest), 1, 2)
        conditions = NormalMixture(self.log_weights, self.means[:, given], matrices)
        return ConditionalMixture(conditions, means, slopes, factors)


class ConditionalMixture(NamedTuple):
    """The last D columns of a mixture of K normal distributions, given the first C.

    Of component k, `events = means + conditions slopes + latents factors` with normal latents.

    Attributes:
      conditions: mixture of the first columns.
      means: [K, D].
      slopes: [K, C, D].
      factors: upper triangular [K, D, D].
    """

    conditions: NormalMixture
    means: np.ndarray
    slopes: np.ndarray
    factors: np.ndarray

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        """Returns the log density of the events of rows given their conditions, [N]."""
        log_probs = np.log(self._shares(rows))
        for i, (errors, matrix) in enumerate(self._errors(rows)):
            log_probs[:, i] += _normal_log_prob(errors, matrix)
        return _log_sum_exp(log_probs)[0]

    def cdf(self, rows: np.ndarray) -> np.ndarray:
        """Returns the cumulative distribution function at the rows of a single column, [N]."""
        return sum(
            share * ndtr(errors[:, 0])
            for share, (errors, _) in zip(self._shares(rows).T, self._errors(rows), strict=True)
        )

    def mean_of_events(self, conditions: np.ndarray) -> np.ndarray:
        """Returns the mean of events given conditions, [N, D]."""
        shares = self._shares(conditions)
        moved = np.einsum("nk,nc,kcd->nd", shares, conditions, self.slopes, optimize=True)
        return shares @ self.means + moved

    def _shares(self, rows: np.ndarray) -> np.ndarray:
        """Returns the probability of each component given the conditions of rows, [N, K]."""
        conditions = rows[:, : self.slopes.shape[1]]
        return _log_sum_exp(self.conditions.joint_log_probs(conditions))[1].clip(min=1e-300)

    def _errors(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields latents [N, D] of rows by each component, and the matrices that give them."""
        conditions, events = np.split(rows, [self.slopes.shape[1]], axis=1)
        inverses = np.linalg.inv(self.factors)
        for mean, slopes, matrix in zip(self.means, self.slopes, inverses, strict=True):
            yield (events - mean - conditions @ slopes) @ matrix, matrix

    def sample(self, conditions: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """Returns events [N, D] given conditions [N, C] from uniform numbers [N, 1 + D]."""
        ends = self._shares(conditions).cumsum(axis=1)
        components = (uniforms[:, :1] * ends[:, -1:] > ends[:, :-1]).sum(axis=1)
        events = ndtri(uniforms[:, 1:])
        for i in np.unique(components):
            chosen = components == i
            mean = self.means[i] + conditions[chosen] @ self.slopes[i]
            events[chosen] = mean + events[chosen] @ self.factors[i]
        return events


def _log_sum_exp(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns log Σ exp over the last axis, [N], and the share of each term in the sum, [N, K]."""
    largest = values.max(axis=1, keepdims=True)
    terms = np.exp(values - largest)
    sums = terms.sum(axis=1, keepdims=True)
    return (largest + np.log(sums))[:, 0], terms / sums


def _normal_log_prob(latents: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Returns the log density, [N], of vectors that a triangular matrix maps to latents [N, D]."""
    log_det = np.log(np.diag(matrix)).sum() - len(matrix) / 2 * math.log(2 * math.pi)
    return log_det - np.einsum("nd,nd->n", latents, latents) / 2


def _clusters(rows: Rows, number: int, seed: int) -> np.ndarray:
    """Returns the cluster of each row by k-means, as shares 0 and 1, [N, K].

    A small `KMeans` of scikit-learn takes 100 times as long, to set up threads.
    """
    values, weights = rows
    centers, _ = kmeans_plusplus(values, number, sample_weight=weights, random_state=seed)
    for _ in range(_CLUSTERING_STEPS):
        nearest = ((centers**2).sum(axis=1) - 2 * values @ centers.T).argmin(axis=1)
        shares = np.eye(number)[nearest]
        sizes = weights @ shares
        is_used = sizes > 0
        sums = (weights * shares.T) @ values
        centers[is_used] = sums[is_used] / sizes[is_used, np.newaxis]
    return shares


def fit_normal_mixtures(
    splits: list[tuple[Rows, Rows]],
    least_variance: np.ndarray,
    rng: np.random.Generator,
    num_conditions: int = 0,
) -> list[list[ConditionalMixture]]:
    """Returns, for each split, the mixtures that are best on what the first split held out.

    They are mixtures of conditions and events, given the conditions.
    """
    if len(splits) == 1:
        return []
    rows, held_out = splits[0]
    is_condition = np.arange(rows.values.shape[1]) < num_conditions
    least_variances = np.append(np.full(num_conditions, _LEAST_CONDITION_VARIANCE), least_variance)
    kept = []
    for is_diagonal in (False, True):
        rows_of_component = 4 if is_diagonal else rows.values.shape[1] + 1
        fits = []
        best, num_worse = -math.inf, 0
        for number in _NUM_COMPONENTS:
            if number * rows_of_component > rows.number or num_worse == 2:
                break
            options = number, is_diagonal, least_variances, int(rng.integers(2**31))
            mixture = NormalMixture.fit(rows, *options).given(is_condition)
            score, _ = held_out.mean_and_error(mixture.log_prob(held_out.values))
            num_worse = 0 if score > best else num_worse + 1
            best = max(best, score)
            fits.append((score, mixture, options))
        fits.sort(key=lambda each: -each[0])
        for _, mixture, options in fits[:_NUM_KEPT_MIXTURES]:
            others = [NormalMixture.fit(train, *options) for train, _ in splits[1:]]
            kept.append([mixture, *(other.given(is_condition) for other in others)])
    return kept
