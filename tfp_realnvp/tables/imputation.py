"""Missing cells of rows, drawn given the other cells by importance sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy.special import logsumexp, softmax
from scipy.stats import qmc

from tfp_realnvp.tables.categories import NO_CATEGORIES, CategoryMixture
from tfp_realnvp.tables.simple_densities import NormalMixture
from tfp_realnvp.tables.table import Rows, slices

__all__ = [
    "fill",
    "impute",
    "log_marginals",
    "mixture_with_gaps",
    "proposal_of_samples",
    "with_draws",
]

_MAX_COMPONENTS, _SAMPLES_OF_COMPONENT = 16, 10
# Weights correct a proposal that is not the best one.
_MAX_STEPS = 15
# A part of the proposals are from one wide normal distribution, since tails of mixtures are light.
_WIDE_SHARE, _WIDE_VARIANCE = 0.1, 4.0
_MIN_PROPOSALS, _PROPOSALS_OF_SAMPLE, _NUM_POINTS = 128, 4, 512
_CHUNK_SIZE = 65_536
# Constants of `mixture_with_gaps`.
_NUM_STEPS, _NUM_MIXTURES, _MAX_ROWS = 40, 5, 1_000
_MAX_MIXED, _ROWS_OF_COMPONENT, _SHRINKAGE = 4, 5, 0.01

LogProb = Callable[[np.ndarray], np.ndarray]


def proposal_of_samples(samples: np.ndarray, seed: int) -> NormalMixture:
    """Returns a mixture of normal distributions that is like samples [N, D] of a density."""
    number, size = samples.shape
    num_components = min(max(number // (_SAMPLES_OF_COMPONENT * (size + 1)), 1), _MAX_COMPONENTS)
    rows = Rows(samples, np.ones(number))
    mean, covariance = rows.covariance()
    least_variance = 1e-6 * np.diag(covariance)
    mixture = NormalMixture.fit(rows, num_components, False, least_variance, seed, _MAX_STEPS)
    wide = _WIDE_VARIANCE * (covariance + np.diag(least_variance))
    return NormalMixture(
        np.append(mixture.log_weights + np.log(1 - _WIDE_SHARE), np.log(_WIDE_SHARE)),
        np.concatenate([mixture.means, mean[np.newaxis]]),
        np.concatenate([mixture.covariances, wide[np.newaxis]]),
    )


def impute(
    log_prob: LogProb,
    proposal: NormalMixture,
    rows: np.ndarray,
    num_samples: int,
    rng: np.random.Generator,
    categories: CategoryMixture = NO_CATEGORIES,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows whose missing cells are drawn from a density given the other cells.

    The cells m are proposed by q(m | o) and resampled with the weights `w = p(o, m) / q(m | o)`.

    Source: Rubin: The calculation of posterior distributions by data augmentation: Comment: A
    noniterative sampling/importance resampling alternative, 1987.

    Args:
      log_prob: log p of rows [M, D], [M].
      proposal: q.
      rows: [N, D], with NaN in missing cells.
      num_samples: S, for each row.
      rng: of proposals and resampling.
      categories: proposes the first columns, which are indicators.

    Returns:
      The rows, [S, N, D], and the effective sizes (Σ w)² / Σ w² of their weights, [N].
    """
    number = max(_MIN_PROPOSALS, _PROPOSALS_OF_SAMPLE * num_samples)
    samples, sizes = [], []
    for (chunk,) in slices(max(1, _CHUNK_SIZE // number), rows):
        uniforms = rng.random([number, len(chunk), _num_uniforms(rows, categories)])
        filled, log_weights = _weighted_proposals(log_prob, proposal, categories, chunk, uniforms)
        log_weights = logsumexp(log_weights, axis=-1)
        sizes.append(_effective_sizes(log_weights))
        # Systematic resampling: one choice from each of S equal parts of the sum of weights.
        ends = softmax(log_weights, axis=0).cumsum(axis=0)
        levels = np.arange(num_samples)[:, np.newaxis] + rng.random([1, len(chunk)])
        levels = rng.permuted(levels / num_samples, axis=0) * ends[-1]
        chosen = [
            np.searchsorted(end[:-1], level, side="right")
            for end, level in zip(ends.T, levels.T, strict=True)
        ]
        samples.append(np.take_along_axis(filled, np.stack(chosen, 1)[..., np.newaxis], axis=0))
    return np.concatenate(samples, axis=1), np.concatenate(sizes)


def log_marginals(
    log_prob: LogProb,
    proposal: NormalMixture,
    rows: np.ndarray,
    categories: CategoryMixture = NO_CATEGORIES,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns log p of the cells that are not missing, [N]: the mean of the weights of `impute`.

    The proposals are the same even points for all rows, so that a result depends on its row alone.
    The second result has the effective sizes of the weights, [N].
    """
    points = qmc.Halton(_num_uniforms(rows, categories), rng=0).random(_NUM_POINTS)[:, np.newaxis]
    results = []
    for (chunk,) in slices(_CHUNK_SIZE // _NUM_POINTS, rows):
        uniforms = np.repeat(points, len(chunk), axis=1)
        _, log_weights = _weighted_proposals(log_prob, proposal, categories, chunk, uniforms)
        sizes = _effective_sizes(logsumexp(log_weights, axis=-1))
        results.append(np.column_stack([logsumexp(log_weights, axis=0), sizes]))
    results = np.concatenate(results)
    return results[:, :-1] - np.log(_NUM_POINTS), results[:, -1]


def fill(mixture: NormalMixture, rows: np.ndarray, rng: Any = None) -> np.ndarray:
    """Returns rows [N, D] with means of missing cells given the other cells, or draws by `rng`."""
    rows = rows.copy()
    for is_missing, chosen in _patterns(rows):
        given, known = mixture.given(~is_missing), rows[chosen][:, ~is_missing]
        if rng is None:
            cells = given.mean_of_events(known)
        else:
            cells = given.sample(known, rng.random([len(known), 1 + is_missing.sum()]))
        rows[np.ix_(chosen, is_missing)] = cells
    return rows


def mixture_with_gaps(
    rows: Rows, snapped: Any, rng: np.random.Generator, num_mixtures: int = 0
) -> NormalMixture:
    """Returns a mixture of normal distributions of standardized rows with NaN in missing cells.

    It is from stochastic expectation maximization: each mixture of a series is fitted to the rows
    with draws from the mixture before it; `snapped` replaces draws by values that exist. The first
    mixtures have one component, which extrapolates to rows whose neighbors miss the same cells. The
    covariance of a component is (N + D) / (N - D) times that of its N rows [D]: by this factor,
    expected squared errors of a linear regression are larger for rows that it did not learn.

    Source: Celeux, Diebolt: The SEM algorithm: a probabilistic teacher algorithm derived from the
    EM algorithm for the mixture problem, 1985.
    """
    rows = rows.thinned(_MAX_ROWS)
    size = rows.values.shape[1]
    num_components = np.clip(rows.number // (_ROWS_OF_COMPONENT * (size + 1)), 1, _MAX_MIXED)
    mixture = NormalMixture(np.zeros(1), np.zeros([1, size]), np.eye(size)[np.newaxis])
    for k in [1] * _NUM_STEPS + [int(num_components)] * num_mixtures:
        drawn = rows._replace(values=snapped(fill(mixture, rows.values, rng)))
        least_variance = np.full(size, _SHRINKAGE * size * k / rows.number)
        mixture = NormalMixture.fit(drawn, k, False, least_variance, 0, _MAX_STEPS)
        factor = (rows.number + k * size) / max(rows.number - k * size, rows.number / 4)
        mixture = mixture._replace(covariances=factor * mixture.covariances)
    return mixture


def with_draws(parts: list[Rows], snapped: Any, rng: np.random.Generator) -> list[Rows]:
    """Returns parts of a table with draws in missing cells, which learn from the first part."""
    mixture = mixture_with_gaps(parts[0], snapped, rng, _NUM_MIXTURES)
    return [part.mapped(lambda values: snapped(fill(mixture, values, rng))) for part in parts]


def _patterns(rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields which cells are missing, [D], and the rows where these are."""
    patterns, indices = np.unique(np.isnan(rows), axis=0, return_inverse=True)
    for i, is_missing in enumerate(patterns):
        if is_missing.any():
            yield is_missing, np.flatnonzero(indices.ravel() == i)


def _effective_sizes(log_weights: np.ndarray) -> np.ndarray:
    """Returns (Σ w)² / Σ w² of weights [M, N], [N]."""
    return 1 / (softmax(log_weights, axis=0) ** 2).sum(axis=0)


def _num_uniforms(rows: np.ndarray, categories: CategoryMixture) -> int:
    return rows.shape[1] + 2 + len(categories.sizes)


def _weighted_proposals(
    log_prob: LogProb,
    proposal: NormalMixture,
    categories: CategoryMixture,
    rows: np.ndarray,
    uniforms: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns proposals of rows [M, N, D] from uniform numbers, and log w [M, N]."""
    number, size = len(uniforms), rows.shape[1]
    filled = np.tile(rows, [number, 1, 1])
    uniforms, of_categories = np.split(uniforms, [1 + size], axis=-1)
    known = np.concatenate(filled)[:, : sum(categories.sizes)]
    drawn = categories.sample(known, np.concatenate(of_categories))
    log_q = (categories.log_prob(drawn) - categories.log_prob(known)).reshape([number, -1])
    filled[..., : known.shape[1]] = drawn.reshape([number, len(rows), -1])
    rows = filled[0]
    for is_missing, chosen in _patterns(rows):
        given = proposal.given(~is_missing)
        known = np.concatenate(filled[:, chosen][..., ~is_missing])
        is_used = np.append(True, is_missing)
        drawn = given.sample(known, uniforms[:, chosen][..., is_used].reshape([len(known), -1]))
        log_probs = given.log_prob(np.concatenate([known, drawn], axis=1))
        log_q[:, chosen] += log_probs.reshape([number, -1])
        cells = np.ix_(np.arange(number), chosen, np.flatnonzero(is_missing))
        filled[cells] = drawn.reshape([number, len(chosen), -1])
    log_p = log_prob(filled.reshape([-1, rows.shape[1]])).reshape([*log_q.shape, -1])
    return filled, log_p - log_q[..., np.newaxis]
