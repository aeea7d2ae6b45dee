"""Missing cells of rows, drawn given the other cells by importance sampling."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tfp_realnvp.tables.normal_mixture import NormalMixture
from tfp_realnvp.tables.numerics import even_points
from tfp_realnvp.tables.weighted_rows import Rows

__all__ = ["impute", "log_marginals", "proposal_of_samples"]

_MAX_COMPONENTS, _SAMPLES_OF_COMPONENT = 16, 10
# Weights correct a proposal that is not the best one.
_MAX_STEPS = 15
# A part of the proposals are from one wide normal distribution, since tails of mixtures are light.
_WIDE_SHARE, _WIDE_VARIANCE = 0.1, 4.0
_MIN_PROPOSALS, _PROPOSALS_OF_SAMPLE, _NUM_POINTS = 128, 4, 512
_CHUNK_SIZE = 65_536

LogProb = Callable[[np.ndarray], np.ndarray]


def proposal_of_samples(samples: np.ndarray, seed: int) -> NormalMixture:
    """Returns a mixture of normal distributions that is like samples [N, D] of a density."""
    number, size = samples.shape
    num_components = int(
        np.clip(number // (_SAMPLES_OF_COMPONENT * (size + 1)), 1, _MAX_COMPONENTS)
    )
    rows = Rows(samples, np.ones(number))
    mean, covariance = rows.covariance()
    least_variance = 1e-6 * np.diag(covariance)
    mixture = NormalMixture.fit(rows, num_components, False, least_variance, seed, _MAX_STEPS)
    wide = _WIDE_VARIANCE * (covariance + np.diag(least_variance))
    matrix = np.linalg.inv(np.linalg.cholesky(wide)).T
    return NormalMixture(
        np.append(mixture.log_weights + np.log(1 - _WIDE_SHARE), np.log(_WIDE_SHARE)),
        np.concatenate([mixture.means, mean[np.newaxis]]),
        np.concatenate([mixture.matrices, matrix[np.newaxis]]),
    )


def impute(
    log_prob: LogProb,
    proposal: NormalMixture,
    rows: np.ndarray,
    num_samples: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows whose missing cells are drawn from a density given the other cells.

    The cells m are proposed by q(m | o), given the others o, and resampled with the weights
    `w = p(o, m) / q(m | o)`.

    Source: Rubin: The calculation of posterior distributions by data augmentation: Comment: A
    noniterative sampling/importance resampling alternative, 1987.

    Args:
      log_prob: log p of rows [M, D], [M].
      proposal: q.
      rows: [N, D], with NaN in missing cells.
      num_samples: S, for each row.
      rng: of proposals and resampling.

    Returns:
      The rows, [S, N, D], and the effective sizes of their weights, [N].
    """
    number = max(_MIN_PROPOSALS, _PROPOSALS_OF_SAMPLE * num_samples)
    samples, sizes = [], []
    for chunk in _chunks(rows, number):
        uniforms = rng.random([number, len(chunk), 1 + rows.shape[1]])
        filled, log_weights = _weighted_proposals(log_prob, proposal, chunk, uniforms)
        _, weights, size = _mean_of_weights(log_weights)
        sizes.append(size)
        chosen = _systematic_choices(weights, num_samples, rng)
        samples.append(np.take_along_axis(filled, chosen[..., np.newaxis], axis=0))
    return np.concatenate(samples, axis=1), np.concatenate(sizes)


def log_marginals(
    log_prob: LogProb, proposal: NormalMixture, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns log p of the cells that are not missing, [N]: the mean of the weights of `impute`.

    The proposals are even points, the same for all rows, so that a result depends on its row alone.

    Args:
      log_prob: log p of rows [M, D], [M].
      proposal: q.
      rows: [N, D], with NaN in missing cells.

    Returns:
      The log densities, [N], and the effective sizes of their weights, [N].
    """
    points = even_points(_NUM_POINTS, 1 + rows.shape[1])[:, np.newaxis]
    log_probs, sizes = [], []
    for chunk in _chunks(rows, _NUM_POINTS):
        uniforms = np.broadcast_to(points, [_NUM_POINTS, len(chunk), points.shape[-1]])
        _, log_weights = _weighted_proposals(log_prob, proposal, chunk, uniforms)
        log_mean, _, size = _mean_of_weights(log_weights)
        log_probs.append(log_mean)
        sizes.append(size)
    return np.concatenate(log_probs), np.concatenate(sizes)


def _mean_of_weights(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns of log weights [M, N] the log mean, [N], relative weights, and effective sizes, [N].

    The effective size of weights w is (Σ w)² / Σ w².
    """
    largest = log_weights.max(axis=0)
    weights = np.exp(log_weights - largest)
    sizes = weights.sum(axis=0) ** 2 / (weights**2).sum(axis=0)
    return largest + np.log(weights.mean(axis=0)), weights, sizes


def _chunks(rows: np.ndarray, number: int) -> list[np.ndarray]:
    """Returns the rows in parts, each with a bounded number of proposals."""
    num_rows = max(1, _CHUNK_SIZE // number)
    return [rows[start : start + num_rows] for start in range(0, len(rows), num_rows)]


def _weighted_proposals(
    log_prob: LogProb, proposal: NormalMixture, rows: np.ndarray, uniforms: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns proposals of rows [M, N, D] from uniform numbers [M, N, 1 + D], and log w [M, N]."""
    number = len(uniforms)
    filled = np.tile(rows, [number, 1, 1])
    log_q = np.zeros([number, len(rows)])
    patterns, indices = np.unique(np.isnan(rows), axis=0, return_inverse=True)
    for i, is_missing in enumerate(patterns):
        (chosen,) = np.nonzero(indices.ravel() == i)
        if not is_missing.any():
            continue
        given = proposal.given(~is_missing)
        known = np.tile(rows[chosen][:, ~is_missing], [number, 1])
        is_used = np.append(True, is_missing)
        drawn = given.sample(known, uniforms[:, chosen][..., is_used].reshape([len(known), -1]))
        log_probs = given.log_prob(np.concatenate([known, drawn], axis=1))
        log_q[:, chosen] = log_probs.reshape([number, -1])
        cells = np.ix_(np.arange(number), chosen, np.flatnonzero(is_missing))
        filled[cells] = drawn.reshape([number, len(chosen), -1])
    log_p = log_prob(filled.reshape([-1, rows.shape[1]])).reshape(log_q.shape)
    return filled, log_p - log_q


def _systematic_choices(
    weights: np.ndarray, num_samples: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns indices [S, N] in random order, in proportion to weights [M, N]."""
    ends = weights.cumsum(axis=0)
    levels = (
        np.arange(num_samples)[:, np.newaxis] + rng.random([1, weights.shape[1]])
    ) / num_samples
    levels = rng.permuted(levels, axis=0) * ends[-1]
    columns = zip(ends.T, levels.T, strict=True)
    chosen = [np.searchsorted(end[:-1], level, side="right") for end, level in columns]
    return np.stack(chosen, axis=1)
