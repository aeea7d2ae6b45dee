"""Mixtures of simple densities and flows, with weights that maximize the held-out likelihood."""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from scipy.special import logsumexp

from tfp_realnvp.tables.boosted_trees import BoostedTrees, GivenTrees, fit_boosted_trees
from tfp_realnvp.tables.flow import fit_table_flow
from tfp_realnvp.tables.imputation import with_draws
from tfp_realnvp.tables.simple_densities import fit_normal_mixtures, fit_student_t
from tfp_realnvp.tables.table import Columns, Rows

__all__ = ["TableStack", "fit_table_stack"]

_MIN_ROWS_OF_TREES, _MIN_ROWS_OF_FLOWS = 100, 150
# With trees and the default `num_flows`: on smaller tables flows added nothing to trees.
_MIN_ROWS_OF_DEFAULT = 2_000
# Flows of a single column given others must gain this many nats to be worth their time.
_LEAST_GAIN = 0.01
# Candidates of smaller weight are dropped.
_LEAST_WEIGHT = 1e-3
# N held-out rows carry no information about rows rarer than one in N. Student t distributions keep
# this weight, or the share of this number of rows if that is less. Without their heavy tails, all
# new rows would be impossible where columns depend on each other exactly.
_STUDENT_T_WEIGHT, _STUDENT_T_ROWS = 0.01, 10
# Flows compute probabilities in float32.
_LEAST_MASS = 1e-5
_MAX_STEPS, _TOLERANCE = 500, 1e-5
# Defaults with few rows, and with many. Many rows need only one, larger flow: a held-out tenth of
# the rows is enough for early stopping and for the weights.
_MIN_MANY_ROWS, _PARTS_OF_MANY_ROWS = 50_000, 10
_DEFAULTS = {
    "num_flows": (5, 1),
    "num_filters": (32, 64),
    "max_steps": (2_000, 6_000),
    "batch_size": (128, 512),
}


class TableStack(NamedTuple):
    """A mixture of densities of events given conditions.

    Attributes:
      parts: the densities.
      shares: their weights.
      width: interval over which the density of a single column is averaged; 0 for none.
      trees: trees whose predictions are the first two conditions of the densities, or `None`.
    """

    parts: list[Any]
    shares: np.ndarray
    width: float
    trees: BoostedTrees | None

    def conditions(self, conditions: np.ndarray) -> np.ndarray:
        """Prepends the predictions of trees to conditions, as the other methods expect."""
        if self.trees is None:
            return conditions
        return np.column_stack([self.trees.predictions(conditions), conditions])

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        """Returns the log density of the events of rows given their conditions, [N]."""
        log_probs = [_log_prob(part, rows, self.width) for part in self.parts]
        return logsumexp(np.stack(log_probs, axis=1), axis=1, b=self.shares)

    def tails(self, rows: np.ndarray) -> np.ndarray:
        """Returns the lower and upper tail probabilities at events of a single column, [2, N]."""
        return self.shares @ np.stack([part.tails(rows) for part in self.parts], axis=1)

    def mean_of_events(self, conditions: np.ndarray) -> np.ndarray:
        """Returns the mean of events given conditions, [N, D]."""
        means = [part.mean_of_events(conditions) for part in self.parts]
        return np.tensordot(self.shares, np.stack(means), axes=1)

    def sample(self, conditions: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """Returns events [N, D] given conditions [N, C] from uniform numbers [N, 2 + D]."""
        ends = self.shares.cumsum()
        chosen = np.searchsorted(ends[:-1], uniforms[:, 0] * ends[-1], side="right")
        events = np.empty([len(uniforms), uniforms.shape[1] - 2])
        for i in np.unique(chosen):
            is_part = chosen == i
            events[is_part] = self.parts[i].sample(conditions[is_part], uniforms[is_part, 1:])
        return events


def fit_table_stack(
    rows: Rows, columns: Columns, options: Any, rng: np.random.Generator, num_conditions: int
) -> tuple[TableStack, list[list[Rows]], np.ndarray, list[dict[str, Any]]]:
    """Returns the density of events given conditions, for standardized rows [N, C + D].

    Each candidate of the mixture has one density per fold, fitted without that fold. Flows are kept
    if the first of them improves the mixture by more than one standard error on its held-out fold.

    For a single column of events given conditions, boosted trees predict its mean and scale, and
    further densities model the standardized errors. Each row gets the predictions of trees fitted
    without it, as two more conditions of all densities.

    `options` are the arguments of an estimator, and `is_density`: whether a single rounded column
    has a density, or otherwise the probability of its rounding interval. Also returns pairs of
    learned and held-out rows, with missing cells drawn; log densities [N, 2] of held-out rows,
    without and with flows; and the history of each flow.
    """
    is_default = options.num_flows is None
    options = _with_defaults(options, rows.number)
    num_parts = _PARTS_OF_MANY_ROWS if options.num_flows == 1 else options.num_flows
    folds = rows.folds(num_parts, rng)
    num_splits = min(options.num_flows, folds.max() + 1)
    widths, least_variances = columns.standardized_widths(), columns.least_variances()
    is_one, width, trees = len(widths) == 1, 0.0, None
    views: list[GivenTrees | None] = [None]
    if options.is_density and options.noise:
        least_variances = [least_variances[0] + options.noise**2]
    if not options.is_density:
        least_variances = least_variances[:1]
        width = widths[0] if is_one else 0.0
    if not options.is_density and is_one and rows.number >= _MIN_ROWS_OF_TREES:
        trees, predictions = fit_boosted_trees(rows, folds, width)
        rows = rows._replace(values=np.column_stack([predictions, rows.values]))
        num_all = 2 + num_conditions
        views = [
            GivenTrees(None, slice(2), of_errors=True),
            GivenTrees(None, slice(num_all), of_errors=False),
            GivenTrees(None, slice(num_all), of_errors=True),
        ]
    splits = [(rows.where(folds != i), rows.where(folds == i)) for i in range(num_splits)]
    splits = splits if folds.any() else [(rows,)]
    if np.isnan(rows.values).any():
        repeated = ([part.repeated() for part in parts] for parts in splits)
        splits = [with_draws(parts, options.snapped, rng) for parts in repeated]
    # A single row cannot be held out.
    splits = [(parts[0], parts[-1]) for parts in splits]
    held_out = Rows(*map(np.concatenate, zip(*(part for _, part in splits), strict=True)))
    # without predictions of trees
    plain = [[part.mapped(lambda v: v[:, 2 * bool(trees) :]) for part in parts] for parts in splits]

    def held_out_log_prob(densities: Iterable[Any]) -> np.ndarray:
        log_probs = [
            _log_prob(density, part.values, width)
            for density, (_, part) in zip(densities, splits, strict=True)
        ]
        return np.concatenate(log_probs)

    candidates: list[list[Any]] = []
    for view in views:
        seen, number, unit = splits, num_conditions, 1.0
        if view:
            seen = [(fit.mapped(view.rows), part.mapped(view.rows)) for fit, part in splits]
            number = seen[0][0].values.shape[1] - 1
            unit = np.exp(np.median(rows.values[:, 1])) if view.of_errors else 1.0
        starts = fit_student_t(seen, widths / unit, options.degrees_of_freedom, number)
        fits: list[list[Any]] = [starts]
        # The last view has no normal mixtures, only Student t distributions and flows.
        for least_variance in least_variances if view in views[:2] else []:
            fits += fit_normal_mixtures(
                seen, least_variance / unit**2, rng, number, options.progress
            )
        if number and not (view and view.of_errors):
            fits += fit_normal_mixtures(
                seen, least_variances[0], rng, number, options.progress, starts
            )
        candidates += [[_viewed(view, density) for density in each] for each in fits]
    log_probs = np.stack([held_out_log_prob(each) for each in candidates], axis=1)
    weights, start = _stacked(log_probs, held_out)
    end = start
    flows: list[Any] = []
    least_gain = _LEAST_GAIN if trees else _TOLERANCE
    history: list[dict[str, Any]] = []
    # Affine maps of a single column could only shift and scale the start.
    is_start = is_one and not num_conditions and options.transformer == "affine"
    least = _MIN_ROWS_OF_DEFAULT if trees and is_default else _MIN_ROWS_OF_FLOWS
    if rows.number >= max(least, _MIN_ROWS_OF_FLOWS) and not is_start:
        for first, split in zip(starts, seen, strict=True):
            flow, of_flow = fit_table_flow(first, *split, widths / unit, options, rng, len(flows))
            flows.append(_viewed(view, flow))
            history.append(of_flow)
            if len(flows) == 1:
                part = splits[0][1]
                before = log_probs[: len(part.values)]
                after = np.column_stack([before, _log_prob(flows[0], part.values, width)])
                gains = _stacked(after, part)[1] - _stacked(before, part)[1]
                gain, error = part.mean_and_error(gains)
                if gain <= max(error, least_gain):
                    options.progress(
                        "no flows: to the mixture of the other densities the first one adds "
                        f"{gain:+.3f} ± {error:.3f} nats a held-out row"
                    )
                    break
        else:
            candidates.append(flows)
            log_probs = np.column_stack([log_probs, held_out_log_prob(flows)])
            weights, end = _stacked(log_probs, held_out)
    parts = [density for i in np.flatnonzero(weights) for density in candidates[i]]
    shares = np.repeat(weights[weights > 0] / len(splits), len(splits))
    log_probs = np.stack([start, end], axis=1)
    return TableStack(parts, shares, width, trees), plain, log_probs, history


def _viewed(view: GivenTrees | None, density: Any) -> Any:
    return view._replace(density=density) if view else density


def _with_defaults(options: Any, num_rows: float) -> Any:
    given = {name: value for name, value in vars(options).items() if value is not None}
    defaults = {
        name: many if num_rows >= _MIN_MANY_ROWS else few for name, (few, many) in _DEFAULTS.items()
    }
    return types.SimpleNamespace(**{**vars(options), **defaults, **given})


def _log_prob(density: Any, rows: np.ndarray, width: float) -> np.ndarray:
    """Returns the log density of the events of rows given their conditions, [N].

    With a width, for a single column of events, it is the log of the mean density over an interval.
    The result is -inf for numbers that overflow float64, or float32 in flows.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        log_probs = density.log_prob(rows)
        if width:
            half = np.zeros(rows.shape[1])
            half[-1] = width / 2
            mass = density.tails(rows + half)[0] - density.tails(rows - half)[0]
            # In the far tails, where the density is flat, differences of probabilities lose
            # precision.
            log_means = np.log(mass.clip(_LEAST_MASS, 1) / width)
            log_probs = np.where(mass > _LEAST_MASS, log_means, log_probs)
    return np.where(np.isnan(log_probs), -np.inf, log_probs)


def _stacked(log_probs: np.ndarray, held_out: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Returns weights of densities, [K], and the log density of their mixture, [N].

    The weights maximize the likelihood of held-out rows with log densities [N, K], a concave
    problem, by expectation maximization. The first density, of Student t distributions, always
    keeps a small weight.

    Source: Smyth, Wolpert: Linearly combining density estimators via stacking, 1999.
    """
    densities = np.exp(log_probs - log_probs.max(axis=1, keepdims=True))
    weights = np.full(log_probs.shape[1], 1 / log_probs.shape[1])
    for _ in range(_MAX_STEPS):
        shares = densities * weights
        shares /= shares.sum(axis=1, keepdims=True)
        before, weights = weights, held_out.weights @ shares / held_out.weights.sum()
        if abs(weights - before).max() < _TOLERANCE:
            break
    weights = np.where(weights > _LEAST_WEIGHT, weights, 0.0)
    least = min(_STUDENT_T_WEIGHT, _STUDENT_T_ROWS / held_out.number)
    weights *= (1 - least) / weights.sum()
    weights[0] += least
    return weights, logsumexp(log_probs, axis=1, b=weights)
