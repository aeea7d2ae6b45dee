"""Mixtures of normal distributions, fitted to weighted rows, and mixtures of any densities.

Plain NumPy: for some thousands of rows it is done before TensorFlow has traced a training step.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from tfp_realnvp.internal.weighted_rows import Rows

__all__ = ["NormalMixture", "mixture_log_prob", "stacking_weights"]

_MAX_STEPS = 60
_TOLERANCE = 1e-3
_CLUSTERING_STEPS = 10
_CHUNK_SIZE = 8_192


class NormalMixture(NamedTuple):
    """A mixture of K normal distributions.

    Attributes:
      log_weights: [K].
      means: [K, D].
      matrices: [K, D, D] that map deviations from the mean to independent numbers of variance 1, or
        [K, D] if the columns of a component are independent.
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
    ) -> NormalMixture:
        """Returns the mixture after expectation maximization, from clusters by k-means.

        Args:
          rows: whose columns have variances of about 1.
          number: of components.
          is_diagonal: whether the columns of a component are independent.
          least_variance: is added to the variance of each column in each component, [D].
          seed: for the first centers of clusters.
        """
        nearest = _clusters(rows, number, np.random.default_rng(seed))
        shares = (nearest[:, np.newaxis] == np.arange(number)).astype(np.float64)
        log_likelihood = -math.inf
        for _ in range(_MAX_STEPS):
            mixture = cls._of_shares(rows, shares, is_diagonal, least_variance)
            log_probs, shares = _log_sum_exp(mixture._joint_log_probs(rows.values))
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
            if is_diagonal:
                variance = share @ shifted**2 / size + least_variance
                matrices.append(variance**-0.5)
            else:
                covariance = (share * shifted.T) @ shifted / size + np.diag(least_variance)
                matrices.append(np.linalg.inv(np.linalg.cholesky(covariance)).T)
        return cls(np.log(sizes / sizes.sum()), means, np.stack(matrices))

    def _joint_log_probs(self, rows: np.ndarray) -> np.ndarray:
        """Returns the log density of each row and component, times its weight, [N, K]."""
        joint = np.empty([len(rows), len(self.means)])
        for i, (mean, matrix) in enumerate(zip(self.means, self.matrices, strict=True)):
            shifted = rows - mean
            latents = shifted * matrix if matrix.ndim == 1 else shifted @ matrix
            diagonal = matrix if matrix.ndim == 1 else np.diag(matrix)
            log_det = np.log(abs(diagonal)).sum() - rows.shape[1] / 2 * math.log(2 * math.pi)
            joint[:, i] = log_det - np.einsum("nd,nd->n", latents, latents) / 2
        return joint + self.log_weights

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        """Returns the log density of rows, [N]."""
        chunks = [rows[i : i + _CHUNK_SIZE] for i in range(0, len(rows), _CHUNK_SIZE)]
        return np.concatenate([_log_sum_exp(self._joint_log_probs(c))[0] for c in chunks])

    def sample(self, number: int, rng: np.random.Generator) -> np.ndarray:
        """Returns random rows, [number, D]."""
        weights = np.exp(self.log_weights)
        rows = []
        for count, mean, matrix in zip(
            rng.multinomial(number, weights / weights.sum()), self.means, self.matrices, strict=True
        ):
            latents = rng.normal(size=[count, len(mean)])
            is_diagonal = matrix.ndim == 1
            rows.append(
                mean + (latents / matrix if is_diagonal else latents @ np.linalg.inv(matrix))
            )
        return np.concatenate(rows)


def _clusters(rows: Rows, number: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the cluster of each row by k-means, which starts by k-means++."""
    values, weights = rows

    def squares(centers: np.ndarray) -> np.ndarray:
        return (centers**2).sum(axis=1) - 2 * values @ centers.T

    centers = rows.draw([1], rng)
    norms = (values**2).sum(axis=1)
    least = np.full(len(values), math.inf)
    while len(centers) < number:
        least = np.minimum(least, norms + squares(centers[-1:])[:, 0]).clip(min=0.0)
        chances = weights * least + 1e-300
        centers = np.append(centers, Rows(values, chances).draw([1], rng), axis=0)
    for _ in range(_CLUSTERING_STEPS):
        nearest = squares(centers).argmin(axis=1)
        shares = weights[:, np.newaxis] * (nearest[:, np.newaxis] == np.arange(number))
        sizes = shares.sum(axis=0)
        means = shares.T @ values / np.maximum(sizes, 1e-300)[:, np.newaxis]
        centers = np.where(sizes[:, np.newaxis] > 0, means, centers)
    return squares(centers).argmin(axis=1)


def stacking_weights(
    log_probs: np.ndarray, weights: np.ndarray, num_steps: int = 500
) -> np.ndarray:
    """Returns the weights of a mixture of densities that make rows most probable, [K].

    The rows are ones to which no density was fitted. The likelihood is a concave function of the
    weights, and expectation maximization ascends it.

    Source: Smyth, Wolpert: Linearly combining density estimators via stacking, 1999.

    Args:
      log_probs: log densities [N, K] of N rows.
      weights: of the rows, [N].
      num_steps: largest number of steps.
    """
    densities = np.exp(log_probs - log_probs.max(axis=1, keepdims=True))
    mixture = np.full(log_probs.shape[1], 1 / log_probs.shape[1])
    for _ in range(num_steps):
        shares = densities * mixture
        shares /= shares.sum(axis=1, keepdims=True)
        before, mixture = mixture, weights @ shares / weights.sum()
        if abs(mixture - before).max() < 1e-5:
            break
    return mixture


def mixture_log_prob(log_probs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns log Σ_k w_k p_k, [N], from log densities [N, K] and weights [K] with the sum 1."""
    with np.errstate(divide="ignore"):
        return _log_sum_exp(log_probs + np.log(weights))[0]


def _log_sum_exp(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns log Σ exp over the last axis, [N], and the share of each term in the sum, [N, K]."""
    largest = values.max(axis=1, keepdims=True)
    terms = np.exp(values - largest)
    sums = terms.sum(axis=1, keepdims=True)
    return (largest + np.log(sums))[:, 0], terms / sums
