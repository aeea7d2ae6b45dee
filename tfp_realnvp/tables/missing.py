"""Imputes missing cells of rows, and computes the marginal density of the known cells."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import logsumexp, softmax, stdtrit
from scipy.stats import qmc, t

from tfp_realnvp.tables.simple_densities import ConditionalMixture, NormalMixture, StudentT
from tfp_realnvp.tables.table import Columns, Rows, drawn

_NUM_STEPS, _NUM_MIXTURES, _MAX_ROWS, _MAX_EM_STEPS = 40, 5, 1_000, 15
_MAX_MIXED, _ROWS_OF_COMPONENT, _SHRINKAGE = 4, 5, 0.01
# Importance sampling for densities other than normal mixtures: a quarter of the proposals come from
# a wide Student t distribution, which covers heavy tails that normal mixtures miss.
_WIDE_SHARE, _WIDE_SCALE, _WIDE_DF = 0.25, 1.5, 4.0


def fill(mixture: NormalMixture, rows: np.ndarray, rng: Any = None) -> np.ndarray:
    """Imputes missing cells of rows [N, D] by conditional means, or with `rng` by random draws."""
    rows = rows.copy()
    for is_missing, chosen in patterns(rows):
        if not is_missing.any():
            continue
        rest, known = mixture.given(~is_missing), rows[chosen][:, ~is_missing]
        if rng is None:
            cells = rest.mean_of_events(known)
        else:
            cells = rest.sample(known, rng.random([len(known), 1 + is_missing.sum()]))
        rows[np.ix_(chosen, is_missing)] = cells
    return rows


def mixture_with_gaps(
    rows: Rows, rng: np.random.Generator, columns: Sequence[Columns] = (), num_mixtures: int = 0
) -> NormalMixture:
    """Fits a normal mixture to standardized rows with NaN in missing cells.

    Each iteration of stochastic expectation maximization samples the missing cells from the current
    mixture, and fits a new mixture to the completed rows. Each of `columns` rounds its samples to
    existing values. The first iterations fit one component, which extrapolates to rows whose
    neighbors miss the same cells. With N rows [D] per component, covariances are multiplied by
    (N + D) / (N - D): by this factor, a linear regression has larger squared errors on new rows.

    Source: Celeux, Diebolt: The SEM algorithm: a probabilistic teacher algorithm derived from the
    EM algorithm for the mixture problem, 1985.
    """
    rows = rows.thinned(_MAX_ROWS)
    size = rows.values.shape[1]
    num_components = np.clip(rows.number // (_ROWS_OF_COMPONENT * (size + 1)), 1, _MAX_MIXED)
    mixture = NormalMixture(np.zeros(1), np.zeros([1, size]), np.eye(size)[np.newaxis])
    num_steps = _NUM_STEPS if np.isnan(rows.values).any() else 1
    for k in [1] * num_steps + [int(num_components)] * num_mixtures:
        drawn = rows._replace(values=_snapped(fill(mixture, rows.values, rng), columns))
        least_variance = np.full(size, _SHRINKAGE * size * k / rows.number)
        mixture = NormalMixture.fit(drawn, k, False, least_variance, 0, _MAX_EM_STEPS)
        factor = (rows.number + k * size) / max(rows.number - k * size, rows.number / 4)
        mixture = mixture._replace(covariances=factor * mixture.covariances)
    return mixture


def with_draws(parts: Sequence[Rows], columns: Sequence[Columns], rng: Any) -> list[Rows]:
    """Imputes the missing cells of `parts`: training rows and, if there are any, held-out rows.

    Samples the cells from a normal mixture that is fitted to the training rows. `columns` are the
    `Columns` of conditions and events.
    """
    mixture = mixture_with_gaps(parts[0], rng, columns, _NUM_MIXTURES)
    return [part.mapped(lambda v: _snapped(fill(mixture, v, rng), columns)) for part in parts]


def _snapped(rows: np.ndarray, columns: Sequence[Columns]) -> np.ndarray:
    """Rounds imputed values to existing values of the columns; without columns, returns `rows`."""
    ends = np.cumsum([len(each.center) for each in columns])
    parts = zip(columns, np.split(rows, ends[:-1], axis=1), strict=False)
    return np.column_stack([each.snapped(part) for each, part in parts]) if columns else rows


class Given(NamedTuple):
    """Some densities of a `TableStack`, conditioned on the known cells of rows [N, C + D].

    Attributes:
      log_mass: log of what these densities add to the marginal density of the known events, [N].
      sample: function that samples the missing cells of the rows at indices [M], from uniform
        numbers [M, 1 + number of missing cells].
      size: effective number of proposals that estimate `log_mass`, [N]; infinite if it is exact.
    """

    log_mass: np.ndarray
    sample: Callable[[np.ndarray, np.ndarray], np.ndarray]
    size: np.ndarray


@np.errstate(over="ignore", invalid="ignore")
def given(stack: Any, rows: np.ndarray, is_missing: np.ndarray, num_proposals: int) -> list[Given]:
    """Conditions the densities of a `TableStack` on the known cells; all rows miss the same cells.

    For normal mixtures, the result is exact. The other densities use importance sampling. The
    proposal q(m | o) for missing cells m given known cells o mixes the normal mixture of largest
    weight with a wide Student t distribution. The importance weights are `p(o, m) / q(m | o)`. All
    rows use the same quasi-random points, so the result for a row does not depend on other rows.

    Source: Rubin: The calculation of posterior distributions by data augmentation: Comment: A
    noniterative sampling/importance resampling alternative, 1987.
    """
    exact, known, results = np.full(len(rows), np.inf), rows[:, ~is_missing], []
    if not is_missing.any():
        return [Given(stack.log_prob(rows), lambda chosen, _: np.empty([len(chosen), 0]), exact)]
    is_mixed = np.array([isinstance(part, ConditionalMixture) for part in stack.parts])
    mixed = [(stack.parts[i], stack.shares[i]) for i in np.flatnonzero(is_mixed)]
    others = [part for part in stack.parts if not isinstance(part, ConditionalMixture)]
    if mixed:
        mixtures = [part.mixture for part, _ in mixed]
        ends = np.cumsum([len(mixture.means) for mixture in mixtures])
        # One matrix product evaluates the components of all mixtures.
        components = NormalMixture(*map(np.concatenate, zip(*mixtures, strict=True)))
        joint = components.of_columns(~is_missing).joint_log_probs(known)
        for (part, share), log_probs in zip(mixed, np.split(joint, ends[:-1], 1), strict=True):
            log_mass = logsumexp(log_probs, axis=1) - part.log_prob_of_conditions(rows)
            log_mass = np.log(share) + np.where(np.isnan(log_mass), -np.inf, log_mass)
            results.append(Given(log_mass, _sampler(part.mixture, is_missing, known), exact))
    mixture = None
    if mixed and not all(isinstance(part, StudentT) for part in others):
        mixture = max(mixed, key=lambda each: each[1])[0].mixture.given(~is_missing)
    rest = stack._replace(parts=others, shares=stack.shares[~is_mixed])
    proposals, log_weights = _proposals(rest, mixture, rows, is_missing, num_proposals)
    weights = softmax(log_weights, axis=0)

    def sample(chosen: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        return proposals[drawn(weights[:, chosen].T, uniforms[:, 0]), chosen]

    log_mass = logsumexp(log_weights, axis=0) - np.log(num_proposals)
    return [*results, Given(log_mass, sample, 1 / (weights**2).sum(axis=0))]


def _sampler(mixture: NormalMixture, is_missing: np.ndarray, known: np.ndarray) -> Any:
    return lambda chosen, uniforms: mixture.given(~is_missing).sample(known[chosen], uniforms)


def _proposals(
    stack: Any, mixture: Any, rows: np.ndarray, is_missing: np.ndarray, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns S proposals for M missing cells, [S, N, M], and log importance weights, [S, N].

    With a `ConditionalMixture` as `mixture`, most proposals are its samples.
    """
    start = next(part for part in stack.parts if isinstance(part, StudentT))
    is_event = is_missing[len(start.slopes) :]
    # Conditions the Student t distribution on the known cells as if it were normal.
    inverse = np.linalg.inv(start.matrix)
    covariances = (_WIDE_SCALE**2 * inverse.T @ inverse)[np.newaxis]
    errors = NormalMixture(np.zeros(1), np.zeros([1, len(inverse)]), covariances).given(~is_event)
    slopes, factor = errors.slopes[0], errors.factors[0]
    conditions, events = np.split(rows, [len(start.slopes)], axis=1)
    mean = start.mean_of_events(conditions)
    center = mean[:, is_event] + (events - mean)[:, ~is_event] @ slopes

    points = qmc.Halton(2 + len(factor), rng=0).random(number)
    cells = center + (stdtrit(_WIDE_DF, points[:, 2:]) @ factor)[:, np.newaxis]
    filled = np.tile(rows, [number, 1])
    known = filled[:, ~is_missing]
    if mixture is not None:
        is_narrow = points[:, 0] >= _WIDE_SHARE
        uniforms = np.repeat(points[is_narrow, 1:], len(rows), axis=0)
        narrow = mixture.sample(known[: len(uniforms)], uniforms)
        cells[is_narrow] = narrow.reshape([-1, *center.shape])
    filled[:, is_missing] = np.concatenate(cells)
    log_q = t.logpdf((cells - center) @ np.linalg.inv(factor), _WIDE_DF).sum(axis=-1)
    log_q -= np.log(np.diag(factor)).sum()
    if mixture is not None:
        log_narrow = mixture.log_prob(np.column_stack([known, filled[:, is_missing]]))
        log_narrow = log_narrow.reshape(log_q.shape) + np.log(1 - _WIDE_SHARE)
        log_q = np.logaddexp(log_q + np.log(_WIDE_SHARE), log_narrow)
    return cells, stack.log_prob(filled).reshape(log_q.shape) - log_q


def patterns(rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields each pattern of missing cells, [D], and the indices of the rows that have it."""
    kinds, indices = np.unique(np.isnan(rows), axis=0, return_inverse=True)
    order, counts = np.argsort(indices.ravel(), kind="stable"), np.bincount(indices.ravel())
    yield from zip(kinds, np.split(order, np.cumsum(counts)[:-1]), strict=True)
