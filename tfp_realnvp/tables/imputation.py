"""Missing cells of rows, drawn given the other cells by importance sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tfp_realnvp.tables.normal_mixture import NormalMixture
from tfp_realnvp.tables.weighted_rows import Rows

__all__ = ["Imputations", "impute", "proposal_of_samples"]

_MAX_COMPONENTS, _SAMPLES_OF_COMPONENT = 16, 10
# Weights correct a proposal that is not the best one.
_MAX_STEPS = 15
# A part of the proposals are from one wide normal distribution, since tails of mixtures are light.
_WIDE_SHARE, _WIDE_VARIANCE = 0.1, 4.0
_MIN_PROPOSALS, _PROPOSALS_OF_SAMPLE = 128, 4
_CHUNK_SIZE = 65_536


class Imputations(NamedTuple):
    """Rows without missing cells, and what their weights say.

    Attributes:
      samples: [S, N, D].
      log_marginals: estimates of the log density of the cells that were not missing, [N].
      effective_sizes: (Σ w)² / Σ w² of the weights of proposals, [N].
      num_proposals: for each row.
    """

    samples: np.ndarray
    log_marginals: np.ndarray
    effective_sizes: np.ndarray
    num_proposals: int


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
    log_prob: Callable[[np.ndarray], np.ndarray],
    proposal: NormalMixture,
    rows: np.ndarray,
    num_samples: int,
    rng: np.random.Generator,
) -> Imputations:
    """Returns rows whose missing cells are drawn from a density given the other cells.

    The cells m are proposed by q(m | o), given the others o, and resampled with the weights
    `w = p(o, m) / q(m | o)`. The mean of the weights estimates p(o).

    Source: Rubin: The calculation of posterior distributions by data augmentation: Comment: A
    noniterative sampling/importance resampling alternative, 1987.

    Args:
      log_prob: log p of rows [M, D], [M].
      proposal: q.
      rows: [N, D], with NaN in missing cells.
      num_samples: S, for each row.
      rng: of proposals and resampling.
    """
    number = max(_MIN_PROPOSALS, _PROPOSALS_OF_SAMPLE * num_samples)
    samples = np.empty([num_samples, *rows.shape])
    log_marginals, sizes = np.empty([2, len(rows)])
    num_rows = max(1, _CHUNK_SIZE // number)
    for start in range(0, len(rows), num_rows):
        chunk = slice(start, start + num_rows)
        filled, log_q = _proposals(proposal, rows[chunk], number, rng)
        log_weights = log_prob(filled.reshape([-1, rows.shape[1]])).reshape(log_q.shape) - log_q
        largest = log_weights.max(axis=0)
        weights = np.exp(log_weights - largest)
        log_marginals[chunk] = largest + np.log(weights.mean(axis=0))
        sizes[chunk] = weights.sum(axis=0) ** 2 / (weights**2).sum(axis=0)
        chosen = _systematic_choices(weights, num_samples, rng)
        samples[:, chunk] = np.take_along_axis(filled, chosen[..., np.newaxis], axis=0)
    return Imputations(samples, log_marginals, sizes, number)


def _proposals(
    proposal: NormalMixture, rows: np.ndarray, number: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns proposals of rows [number, N, D], and log q of what was missing [number, N]."""
    filled = np.tile(rows, [number, 1, 1])
    log_q = np.zeros([number, len(rows)])
    patterns, indices = np.unique(np.isnan(rows), axis=0, return_inverse=True)
    for i, is_missing in enumerate(patterns):
        (chosen,) = np.nonzero(indices.ravel() == i)
        if not is_missing.any():
            continue
        given = proposal.given(~is_missing)
        known = np.tile(rows[chosen][:, ~is_missing], [number, 1])
        drawn = given.sample(known, rng.random([len(known), 1 + is_missing.sum()]))
        log_probs = given.log_prob(np.concatenate([known, drawn], axis=1))
        log_q[:, chosen] = log_probs.reshape([number, -1])
        cells = np.ix_(np.arange(number), chosen, np.flatnonzero(is_missing))
        filled[cells] = drawn.reshape([number, len(chosen), -1])
    return filled, log_q


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
