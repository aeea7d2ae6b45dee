"""Draws the missing cells of training rows given the known cells, by a normal mixture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tfp_realnvp.tables.simple_densities import NormalMixture
from tfp_realnvp.tables.table import Rows

__all__ = ["fill", "mixture_with_gaps", "patterns", "with_draws"]

_NUM_STEPS, _NUM_MIXTURES, _MAX_ROWS, _MAX_EM_STEPS = 40, 5, 1_000, 15
_MAX_MIXED, _ROWS_OF_COMPONENT, _SHRINKAGE = 4, 5, 0.01


def fill(mixture: NormalMixture, rows: np.ndarray, rng: Any = None) -> np.ndarray:
    """Fills missing cells of rows [N, D] with means given the known cells, or draws by `rng`."""
    rows = rows.copy()
    for is_missing, chosen in patterns(rows):
        if not is_missing.any():
            continue
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
    """Fits a normal mixture to standardized rows with NaN in missing cells.

    The method is stochastic expectation maximization: each iteration draws the missing cells from
    the last mixture and fits the next one. `snapped` replaces draws by existing values. The first
    mixtures have one component, which extrapolates to rows whose neighbors miss the same cells. The
    covariance of the N rows [D] of a component is multiplied by (N + D) / (N - D): expected squared
    errors of a linear regression are larger by this factor on new rows.

    Source: Celeux, Diebolt: The SEM algorithm: a probabilistic teacher algorithm derived from the
    EM algorithm for the mixture problem, 1985.
    """
    rows = rows.thinned(_MAX_ROWS)
    size = rows.values.shape[1]
    num_components = np.clip(rows.number // (_ROWS_OF_COMPONENT * (size + 1)), 1, _MAX_MIXED)
    mixture = NormalMixture(np.zeros(1), np.zeros([1, size]), np.eye(size)[np.newaxis])
    num_steps = _NUM_STEPS if np.isnan(rows.values).any() else 1
    for k in [1] * num_steps + [int(num_components)] * num_mixtures:
        drawn = rows._replace(values=snapped(fill(mixture, rows.values, rng)))
        least_variance = np.full(size, _SHRINKAGE * size * k / rows.number)
        mixture = NormalMixture.fit(drawn, k, False, least_variance, 0, _MAX_EM_STEPS)
        factor = (rows.number + k * size) / max(rows.number - k * size, rows.number / 4)
        mixture = mixture._replace(covariances=factor * mixture.covariances)
    return mixture


def with_draws(parts: list[Rows], snapped: Any, rng: np.random.Generator) -> list[Rows]:
    """Draws the missing cells of parts of a table, by a mixture fitted to the first part."""
    mixture = mixture_with_gaps(parts[0], snapped, rng, _NUM_MIXTURES)
    return [part.mapped(lambda values: snapped(fill(mixture, values, rng))) for part in parts]


def patterns(rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields each pattern of missing cells, [D], and the indices of its rows."""
    kinds, indices = np.unique(np.isnan(rows), axis=0, return_inverse=True)
    order, counts = np.argsort(indices.ravel(), kind="stable"), np.bincount(indices.ravel())
    yield from zip(kinds, np.split(order, np.cumsum(counts)[:-1]), strict=True)
