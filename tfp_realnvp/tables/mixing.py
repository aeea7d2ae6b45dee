"""Weights and log densities of mixtures of any densities."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

__all__ = ["log_sum_exp", "mixture_log_prob", "stacking_weights"]


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
    return logsumexp(log_probs, axis=1, b=weights)


def log_sum_exp(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns log Σ exp over the last axis, [N], and the share of each term in the sum, [N, K]."""
    largest = values.max(axis=1, keepdims=True)
    terms = np.exp(values - largest)
    sums = terms.sum(axis=1, keepdims=True)
    return (largest + np.log(sums))[:, 0], terms / sums
