"""Mixtures of simple densities and flows of the rows of a table, weighted by held-out rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.special import logsumexp

from tfp_realnvp.tables import weighted_rows
from tfp_realnvp.tables.flow import TableFlow, TableFlowOptions, fit_table_flow
from tfp_realnvp.tables.normal_mixture import fit_normal_mixtures
from tfp_realnvp.tables.student_t import fit_student_t
from tfp_realnvp.tables.weighted_rows import Rows

__all__ = ["StackOptions", "TableStack", "fit_table_stack"]

_MIN_ROWS_OF_FLOWS = 150
# Candidates of smaller weights are dropped.
_LEAST_WEIGHT = 1e-3
# N held-out rows say nothing about rows that are rarer than one in N: where columns depend on each
# other exactly, a single other row would be impossible without heavy tails. They keep this weight,
# or the share of this number of rows if it is less.
_STUDENT_T_WEIGHT, _STUDENT_T_ROWS = 0.01, 10
# Flows have float32 probabilities.
_LEAST_MASS = 1e-5


class StackOptions(NamedTuple):
    """Options of a stack.

    Attributes:
      num_folds: parts of the rows, each of which is held out once.
      degrees_of_freedom: of the Student t distributions.
      widths: of the uniform noise of the events' columns, [D].
      least_variances: each gives mixtures of normal distributions of their own, with these added to
        the variances of all columns, [C + D].
      flow: options of the flows.
      width: over which the density of a single column of events is averaged, 0 for none.
    """

    num_folds: int
    degrees_of_freedom: float
    widths: np.ndarray
    least_variances: list[np.ndarray]
    flow: TableFlowOptions
    width: float = 0.0


class TableStack(NamedTuple):
    """A mixture of candidates, each of which is an equal mixture of one density for each fold.

    Attributes:
      candidates: lists of densities.
      weights: of the candidates.
      width: see `StackOptions`.
    """

    candidates: list[list[Any]]
    weights: np.ndarray
    width: float

    def parts(self) -> list[Any]:
        """Returns the densities."""
        return [density for candidate in self.candidates for density in candidate]

    def shares(self) -> np.ndarray:
        """Returns the weight of each density."""
        sizes = [len(candidate) for candidate in self.candidates]
        return np.repeat(self.weights / sizes, sizes)

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        """Returns the log density of the events of rows given their conditions, [N]."""
        log_probs = [_log_prob(part, rows, self.width) for part in self.parts()]
        log_probs = np.stack(log_probs, axis=1)
        return logsumexp(log_probs, axis=1, b=self.shares())

    def cdf(self, rows: np.ndarray) -> np.ndarray:
        """Returns the cumulative distribution function at the rows of a single column, [N]."""
        return self._average([part.cdf(rows) for part in self.parts()])

    def mean_of_events(self, conditions: np.ndarray) -> np.ndarray:
        """Returns the mean of events given conditions, [N, D]."""
        return self._average([part.mean_of_events(conditions) for part in self.parts()])

    def _average(self, values: list[np.ndarray]) -> np.ndarray:
        return np.tensordot(self.shares(), np.stack(values), axes=1)

    def sample(self, conditions: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """Returns events [N, D] given conditions [N, C] from uniform numbers [N, 2 + D]."""
        ends = self.shares().cumsum()
        chosen = np.searchsorted(ends[:-1], uniforms[:, 0] * ends[-1], side="right")
        events = np.empty([len(uniforms), uniforms.shape[1] - 2])
        for i, part in enumerate(self.parts()):
            is_part = chosen == i
            if is_part.any():
                events[is_part] = part.sample(conditions[is_part], uniforms[is_part, 1:])
        return events


class StackFit(NamedTuple):
    """A stack, and what was seen of it in fitting.

    Attributes:
      stack: the density.
      held_out: rows that were held out, all folds one after another.
      log_probs: their log densities [N, 2], without flows and with them.
      history: of each flow that was trained, see `fit_table_flow`.
    """

    stack: TableStack
    held_out: Rows
    log_probs: np.ndarray
    history: list[dict[str, Any]]


def fit_table_stack(
    rows: Rows, options: StackOptions, rng: np.random.Generator, num_conditions: int = 0
) -> StackFit:
    """Returns the density of the last columns of rows given the first ones.

    Args:
      rows: [N, C + D], of conditions and events.
      options: of the stack.
      rng: for folds, clusters and flows.
      num_conditions: C.
    """
    folds = weighted_rows.folds(rows.weights, options.num_folds, rng)
    # A single row is not held out.
    splits = [(rows.where(folds != i), rows.where(folds == i)) for i in range(folds.max() + 1)]
    splits = splits if len(splits) > 1 else [(rows, rows)]
    held_out = Rows(*(np.concatenate([each[i] for _, each in splits]) for i in range(2)))
    df = options.degrees_of_freedom
    candidates: list[list[Any]] = [fit_student_t(splits, options.widths, df, num_conditions)]
    for least_variance in options.least_variances:
        candidates += fit_normal_mixtures(splits, least_variance, rng, num_conditions)
    width = options.width
    log_probs = np.stack([_held_out_log_probs(each, splits, width) for each in candidates], axis=1)
    weights, start_log_probs = _stacked(log_probs, held_out)
    flows, history = _fit_flows(candidates[0], splits, log_probs, options, rng)
    end_log_probs = start_log_probs
    if flows:
        candidates.append(flows)
        log_probs = np.column_stack([log_probs, _held_out_log_probs(flows, splits, width)])
        weights, end_log_probs = _stacked(log_probs, held_out)
    both = np.stack([start_log_probs, end_log_probs], axis=1)
    kept = np.flatnonzero(weights)
    stack = TableStack([candidates[i] for i in kept], weights[kept], width)
    return StackFit(stack, held_out, both, history)


def _fit_flows(
    starts: list[Any],
    splits: list[tuple[Rows, Rows]],
    log_probs: np.ndarray,
    options: StackOptions,
    rng: np.random.Generator,
) -> tuple[list[TableFlow], list[dict[str, Any]]]:
    """Returns a flow for each split, or none where flows add nothing to other candidates.

    The first flow tells: what the mixture gains from it on the rows that it did not learn from has
    to be more than the standard error.

    Args:
      starts: where flows start.
      splits: rows to learn from and held-out ones.
      log_probs: log densities of held-out rows by the other candidates, [N, K].
      options: of the stack.
      rng: for batches and noise.
    """
    number = splits[0][0].number + splits[0][1].number
    num_conditions, size = starts[0].slopes.shape
    # Affine maps of a single column only move and scale the start.
    is_start = size == 1 and num_conditions == 0 and options.flow.transformer == "affine"
    if number < _MIN_ROWS_OF_FLOWS or is_start:
        return [], []
    flows: list[TableFlow] = []
    histories: list[dict[str, Any]] = []
    for i, (start, (rows, held_out)) in enumerate(zip(starts, splits, strict=True)):
        flow, history = fit_table_flow(start, rows, held_out, options.widths, options.flow, rng, i)
        flows.append(flow)
        histories.append(history)
        if i == 0:
            before = log_probs[: len(held_out.values)]
            after = _log_prob(flow, held_out.values, options.width)
            after = np.column_stack([before, after])
            (_, before), (_, after) = (_stacked(each, held_out) for each in (before, after))
            gain, error = held_out.mean_and_error(after - before)
            if gain <= error:
                return [], histories
    return flows, histories


def _held_out_log_probs(
    candidate: list[Any], splits: list[tuple[Rows, Rows]], width: float
) -> np.ndarray:
    """Returns the log density of rows by the density that did not learn from them."""
    pairs = zip(candidate, splits, strict=True)
    log_probs = [_log_prob(density, held_out.values, width) for density, (_, held_out) in pairs]
    return np.concatenate(log_probs)


def _log_prob(density: Any, rows: np.ndarray, width: float) -> np.ndarray:
    """Returns the log density of the events of rows given their conditions, [N].

    With a width it is the log of the mean over that width, for a single column of events. It is
    -inf for numbers that are too large for float64.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        log_probs = density.log_prob(rows)
        if width:
            half = np.zeros(rows.shape[1])
            half[-1] = width / 2
            mass = density.cdf(rows + half) - density.cdf(rows - half)
            # Differences of probabilities are less exact far out, where the density is flat.
            log_means = np.log(mass.clip(_LEAST_MASS, 1) / width)
            log_probs = np.where(mass > _LEAST_MASS, log_means, log_probs)
    return np.where(np.isnan(log_probs), -np.inf, log_probs)


def _stacked(log_probs: np.ndarray, held_out: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weights of candidates and the log density of their mixture, of log_probs.

    The first candidate, Student t distributions, keeps a small weight in any case.
    """
    weights = _stacking_weights(log_probs, held_out.weights)
    weights = np.where(weights > _LEAST_WEIGHT, weights, 0.0)
    least = min(_STUDENT_T_WEIGHT, _STUDENT_T_ROWS / held_out.number)
    weights *= (1 - least) / weights.sum()
    weights[0] += least
    return weights, logsumexp(log_probs, axis=1, b=weights)


def _stacking_weights(
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
