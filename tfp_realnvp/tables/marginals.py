"""Marginal densities of rows with missing cells, and draws of these given the known cells."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.special import logsumexp, softmax, stdtrit
from scipy.stats import qmc, t

from tfp_realnvp.tables.categories import CategoryMixture, one_hot
from tfp_realnvp.tables.simple_densities import ConditionalMixture, NormalMixture, StudentT
from tfp_realnvp.tables.stack import TableStack

__all__ = ["NUM_PROPOSALS", "Given", "all_categories", "given"]

# Proposals for densities other than normal mixtures. Some are wide, since mixtures have light
# tails.
NUM_PROPOSALS, _WIDE_SHARE, _WIDE_SCALE, _WIDE_DF = 128, 0.25, 1.5, 4.0
_MAX_COMBINATIONS = 64


class Given(NamedTuple):
    """Some densities of a stack for rows [N, C + D], given the known cells.

    Attributes:
      log_mass: log of their contribution to the density of the known events, [N].
      sample: function that draws missing cells from indices of rows [M] and uniform numbers [M, 1 +
        number of missing cells].
      size: effective number of proposals behind `log_mass`, [N]; infinite if exact.
    """

    log_mass: np.ndarray
    sample: Callable[[np.ndarray, np.ndarray], np.ndarray]
    size: np.ndarray


@np.errstate(over="ignore", invalid="ignore")
def given(stack: TableStack, rows: np.ndarray, is_missing: np.ndarray) -> list[Given]:
    """Conditions the densities of a stack on the known cells of rows that miss the same cells.

    Normal mixtures are exact. The other densities use importance sampling: a mixture q(m | o) of
    the normal mixture of largest weight and a wide Student t distribution proposes missing cells m
    given observed cells o, with weights `p(o, m) / q(m | o)`. All rows use the same quasi-random
    points, so a result depends on its row alone.

    Source: Rubin: The calculation of posterior distributions by data augmentation: Comment: A
    noniterative sampling/importance resampling alternative, 1987.
    """
    if not is_missing.any():
        exact = np.full(len(rows), np.inf)
        return [Given(stack.log_prob(rows), lambda chosen, _: np.empty([len(chosen), 0]), exact)]
    known, results = rows[:, ~is_missing], []
    of_parts = list(zip(stack.parts, stack.shares, strict=True))
    mixed = [each for each in of_parts if isinstance(each[0], ConditionalMixture)]
    others = [each for each in of_parts if not isinstance(each[0], ConditionalMixture)]
    if mixed:
        mixtures = [part.mixture for part, _ in mixed]
        ends = np.cumsum([len(mixture.means) for mixture in mixtures])
        # One matrix product for the components of all mixtures.
        components = NormalMixture(*map(np.concatenate, zip(*mixtures, strict=True)))
        joint = components.of_columns(~is_missing).joint_log_probs(known)
        for (part, share), log_probs in zip(mixed, np.split(joint, ends[:-1], 1), strict=True):
            log_mass = logsumexp(log_probs, axis=1) - part.log_prob_of_conditions(rows)
            log_mass = np.log(share) + np.where(np.isnan(log_mass), -np.inf, log_mass)
            exact = _sampler(part.mixture, is_missing, known)
            results.append(Given(log_mass, exact, np.full(len(rows), np.inf)))
    mixture = None
    if mixed and not all(isinstance(part, StudentT) for part, _ in others):
        mixture = max(mixed, key=lambda each: each[1])[0].mixture.given(~is_missing)
    drawn, log_weights = _proposals(others, mixture, rows, is_missing)
    weights = softmax(log_weights, axis=0)

    def sample(chosen: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        ends = weights[:, chosen].cumsum(axis=0)
        return drawn[(uniforms[:, 0] * ends[-1] > ends[:-1]).sum(axis=0), chosen]

    log_mass = logsumexp(log_weights, axis=0) - np.log(len(drawn))
    return [*results, Given(log_mass, sample, 1 / (weights**2).sum(axis=0))]


def _sampler(mixture: NormalMixture, is_missing: np.ndarray, known: np.ndarray) -> Any:
    return lambda chosen, uniforms: mixture.given(~is_missing).sample(known[chosen], uniforms)


def _proposals(
    parts: list[tuple[Any, float]],
    mixture: ConditionalMixture | None,
    rows: np.ndarray,
    is_missing: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Proposes missing cells, [S, N, M], and returns their log weights, [S, N]."""
    start = next(part for part, _ in parts if isinstance(part, StudentT))
    num_conditions = len(start.slopes)
    is_event = is_missing[num_conditions:]
    # Condition the Student t distribution on the known cells as if it were normal.
    inverse = np.linalg.inv(start.matrix)
    covariance = _WIDE_SCALE**2 * inverse.T @ inverse
    mean = start.mean_of_events(rows[:, :num_conditions])
    errors = (rows[:, num_conditions:] - mean)[:, ~is_event]
    slopes = np.linalg.solve(
        covariance[np.ix_(~is_event, ~is_event)], covariance[np.ix_(~is_event, is_event)]
    )
    rest = covariance[np.ix_(is_event, is_event)] - covariance[np.ix_(is_event, ~is_event)] @ slopes
    factor = np.linalg.cholesky(rest).T
    center = mean[:, is_event] + errors @ slopes

    points = qmc.Halton(2 + len(factor), rng=0).random(NUM_PROPOSALS)
    drawn = center + (stdtrit(_WIDE_DF, points[:, 2:]) @ factor)[:, np.newaxis]
    known = np.tile(rows[:, ~is_missing], [NUM_PROPOSALS, 1])
    if mixture is not None:
        is_narrow = points[:, 0] >= _WIDE_SHARE
        uniforms = np.repeat(points[is_narrow, 1:], len(rows), axis=0)
        narrow = mixture.sample(known[: len(uniforms)], uniforms)
        drawn[is_narrow] = narrow.reshape([-1, *center.shape])
    log_q = t.logpdf((drawn - center) @ np.linalg.inv(factor), _WIDE_DF).sum(axis=-1)
    log_q -= np.log(np.diag(factor)).sum()
    if mixture is not None:
        log_narrow = mixture.log_prob(np.column_stack([known, np.concatenate(drawn)]))
        log_narrow = log_narrow.reshape(log_q.shape) + np.log(1 - _WIDE_SHARE)
        log_q = np.logaddexp(log_q + np.log(_WIDE_SHARE), log_narrow)
    filled = np.tile(rows, [NUM_PROPOSALS, 1])
    filled[:, is_missing] = np.concatenate(drawn)
    densities, shares = zip(*parts, strict=True)
    density = TableStack(list(densities), np.array(shares), 0.0, None)
    return drawn, density.log_prob(filled).reshape(log_q.shape) - log_q


def all_categories(
    mixture: CategoryMixture, indicators: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fills the missing categories of rows [N, H] that miss the same ones, in E ways, [E, N, H].

    The fillings are all combinations, or draws given the known categories if there are too many
    combinations. The second result, [E, N], contains log weights that correct for drawing.
    """
    starts = np.cumsum([0, *mixture.sizes])[:-1]
    is_missing = [bool(np.isnan(indicators[:, start]).any()) for start in starts]
    sizes = [size if gap else 1 for size, gap in zip(mixture.sizes, is_missing, strict=True)]
    if np.prod(sizes, dtype=float) > _MAX_COMBINATIONS:
        repeated = np.tile(indicators, [_MAX_COMBINATIONS, 1])
        uniforms = qmc.Halton(1 + len(sizes), rng=0).random(_MAX_COMBINATIONS)
        drawn = mixture.sample(repeated, np.repeat(uniforms, len(indicators), axis=0))
        factors = mixture.log_prob(repeated) - mixture.log_prob(drawn) - np.log(_MAX_COMBINATIONS)
        shape = [_MAX_COMBINATIONS, len(indicators)]
        return drawn.reshape([*shape, -1]), factors.reshape(shape)
    codes = np.array(list(itertools.product(*map(range, sizes))), float)
    filled = one_hot(codes, mixture.sizes)[:, np.newaxis]
    filled = np.where(np.isnan(indicators), filled, indicators)
    return filled, np.zeros(filled.shape[:2])
