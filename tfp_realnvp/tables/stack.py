"""Stacking: mixtures of simple densities and flows, weighted by held-out likelihood."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import logsumexp

from tfp_realnvp.internal.progress import Progress
from tfp_realnvp.tables.boosted_trees import BoostedTrees, GivenTrees, fit_boosted_trees
from tfp_realnvp.tables.missing import with_draws
from tfp_realnvp.tables.options import Options, resolved
from tfp_realnvp.tables.simple_densities import fit_normal_mixtures, fit_student_t
from tfp_realnvp.tables.table import Columns, Rows, Splits, drawn
from tfp_realnvp.tables.table_flow import fit_table_flow

_MIN_ROWS_OF_TREES, _MIN_ROWS_OF_FLOWS = 100, 150
# With trees and the default `num_flows`, flows need this many rows: with fewer, they added nothing.
_MIN_ROWS_OF_DEFAULT = 2_000
# In a mixture with boosted trees, flows must gain this many nats to be worth their time.
_LEAST_GAIN = 0.01
# Candidates with a smaller weight are dropped.
_LEAST_WEIGHT = 1e-3
# N held-out rows say nothing about events of a probability below 1 / N. Student t distributions
# therefore get at least a weight of 0.01, or 10 / N if that is less. Without their heavy tails, new
# rows could have density 0 if a column is a function of others.
_STUDENT_T_WEIGHT, _STUDENT_T_ROWS = 0.01, 10
# Flows compute in float32, so differences of tail probabilities below this are inaccurate.
_LEAST_MASS = 1e-5
_MAX_STEPS, _TOLERANCE = 500, 1e-5
# Number of folds if only one of them is held out.
_PARTS_OF_MANY_ROWS = 10


class TableStack(NamedTuple):
    """A mixture of densities p(events | conditions).

    Attributes:
      parts: the densities.
      shares: their mixture weights.
      rounding: rounding width, low and high bound of one standardized column; `log_prob` averages
        the density over the width if it is not 0.
      trees: trees whose predictions are the first two conditions of the densities, or `None`.
    """

    parts: list[Any]
    shares: np.ndarray
    rounding: tuple[float, float, float]
    trees: BoostedTrees | None

    def conditions(self, conditions: np.ndarray) -> np.ndarray:
        """Prepends predictions of `trees` to conditions, as the other methods expect."""
        if self.trees is None:
            return conditions
        return np.column_stack([self.trees.predictions(conditions), conditions])

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        """Returns the log density of the events of rows given their conditions, [N]."""
        log_probs = [_log_prob(part, rows, self.rounding) for part in self.parts]
        return logsumexp(np.stack(log_probs, axis=1), axis=1, b=self.shares)

    def tails(self, rows: np.ndarray) -> np.ndarray:
        """Returns the CDF and the survival function at one-dimensional events, [2, N]."""
        return self.shares @ np.stack([part.tails(rows) for part in self.parts], axis=1)

    def mean_of_events(self, conditions: np.ndarray) -> np.ndarray:
        """Returns the mean of events given conditions, [N, D]."""
        means = [part.mean_of_events(conditions) for part in self.parts]
        return np.tensordot(self.shares, np.stack(means), axes=1)

    def sample(self, conditions: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """Returns events [N, D] given conditions [N, C] from uniform numbers [N, 2 + D]."""
        chosen = drawn(self.shares[np.newaxis], uniforms[:, 0])
        events = np.empty([len(uniforms), uniforms.shape[1] - 2])
        for i in np.unique(chosen):
            is_part = chosen == i
            events[is_part] = self.parts[i].sample(conditions[is_part], uniforms[is_part, 1:])
        return events


class StackFit:
    """Fits a stack: the constructor fits the simple densities, and `add_flows` trains flows.

    Each candidate for the mixture is a list of densities, one per fold, fitted to the other folds.
    The mixture contains flows only if training improves the first flow, and this flow improves the
    mixture on its held-out fold by more than one standard error.

    For a single y of `FlowRegressor`, boosted trees predict its mean and scale, and some densities
    model the standardized errors. All densities receive the predictions as two additional
    conditions. The trees that predict a row were fitted without its fold.

    Attributes:
      splits: pairs of training and held-out rows, with missing cells imputed.
      max_flows: number of flows to train; 0 if the first flow gained too little.
      flows: the trained flows; flow i holds out fold i.
      history: the history of each trained flow, see `fit_table_flow`.
    """

    def __init__(
        self, rows: Rows, columns: Sequence[Columns], options: Options, rng: Any, progress: Progress
    ) -> None:
        """Fits all densities except flows.

        Args:
          rows: standardized conditions and events, [N, C + D].
          columns: the `Columns` of the conditions and of the events.
          options: the arguments of the estimator.
          rng: generator for folds, clusters and flows.
          progress: prints progress.
        """
        widths, least_variances = columns[1].standardized_widths(), columns[1].least_variances()
        is_one, is_default = len(widths) == 1, options.num_flows is None
        self._options = resolved(options, rows.number, is_one)
        num_flows, noise = self._options.num_flows, self._options.noise
        self._rng, self._progress = rng, progress
        if noise or not options._is_density:
            least_variances = [least_variances[0] + options._is_density * (noise or 0.0) ** 2]
        self._rounding = (0.0, -np.inf, np.inf)
        if is_one and not options._is_density:
            self._rounding = (widths[0], *columns[1].standardized(columns[1].ends())[:, 0])
        folds = rows.folds(_PARTS_OF_MANY_ROWS if num_flows == 1 else num_flows, rng)
        self._trees, views = None, [None]
        if is_one and not options._is_density and rows.number >= _MIN_ROWS_OF_TREES:
            self._trees, predictions = fit_boosted_trees(rows, folds, self._rounding[0])
            rows = rows.mapped(lambda values: np.column_stack([predictions, values]))
            views = [GivenTrees(None, 2), None, GivenTrees(None, rows.values.shape[1] - 1)]
        self.splits = _splits(rows, folds, columns, num_flows, rng)
        self._candidates: list[list[Any]] = []
        for view in views:  # The third view, which initializes flows, gets no normal mixtures.
            self._fit_view(view, widths, least_variances if view in views[:2] else [])
        self._log_probs = np.stack([*map(self._held_out_log_prob, self._candidates)], axis=1)
        # Without conditions, affine couplings could only shift and scale a single column.
        is_start = rows.values.shape[1] == 1 and self._options.transformer == "affine"
        least = max(_MIN_ROWS_OF_FLOWS, _MIN_ROWS_OF_DEFAULT * bool(self._trees and is_default))
        has_flows = rows.number >= least and self._options.max_steps > 0 and not is_start
        self.max_flows = len(self.splits) if has_flows else 0
        self.flows: list[Any] = []
        self.history: list[dict[str, Any]] = []

    def _fit_view(self, view: Any, widths: np.ndarray, least_variances: list[np.ndarray]) -> None:
        """Fits densities to `view.rows(rows)`, or to the rows; the last view initializes flows."""
        self._view, self._seen, unit = view, self.splits, 1.0
        if view:
            self._seen = [(a.mapped(view.rows), b.mapped(view.rows)) for a, b in self.splits]
            unit = np.exp(np.median(Rows.concatenated(self.splits[0]).values[:, 1]))
        self._widths = widths / unit
        self._starts = fit_student_t(self._seen, self._widths, self._options.degrees_of_freedom)
        fits: list[list[Any]] = [self._starts]
        options = self._rng, self._progress
        for least_variance in least_variances:
            fits += fit_normal_mixtures(self._seen, least_variance / unit**2, *options)
        if not view and self._starts[0].slopes.size:
            fits += fit_normal_mixtures(self._seen, least_variances[0], *options, self._starts)
        self._candidates += [[*map(self._viewed, densities)] for densities in fits]

    def _viewed(self, density: Any) -> Any:
        return self._view._replace(density=density) if self._view else density

    def _held_out_log_prob(self, densities: list[Any]) -> np.ndarray:
        """Evaluates each density on its held-out fold, and concatenates the log densities."""
        pairs = zip(densities, self.splits, strict=False)
        return np.concatenate([_log_prob(d, part.values, self._rounding) for d, (_, part) in pairs])

    def add_flows(self) -> None:
        """Trains one flow per fold; stops if the first one improves the mixture too little.

        `KeyboardInterrupt` keeps the best weights so far of the flow in training, and is raised
        again with the step that training had reached.
        """
        least_gain = _LEAST_GAIN if self._trees else _TOLERANCE
        for i in range(self.max_flows):
            fit = self._starts[i], self._seen[i], self._widths, self._options, self._rng
            best, is_interrupted = None, False
            try:
                for validated in fit_table_flow(*fit, self._progress, i):
                    best = validated
            except KeyboardInterrupt:
                if best is None:
                    raise
                is_interrupted = True
            flow, history = best
            self.history.append(history)
            self.flows.append(self._viewed(flow))
            if i == 0:
                _, held_out, (start, end) = self._weighted()
                gain, error = held_out.mean_and_error(end - start)
                # Initial weights are a random rotation, which can be better by chance.
                if not history["kept_step"] or gain <= max(error, least_gain):
                    self.flows.clear()
                    self._progress(
                        f"no flows: the first flow, with the weights of step {history['kept_step']}"
                        f", improves the mixture by {gain:+.3f} ± {error:.3f} nats per held-out row"
                    )
            if is_interrupted:
                raise KeyboardInterrupt(history["step"][-1])
            if not self.flows:
                self.max_flows = 0
                break

    def result(self) -> tuple[TableStack, Rows, np.ndarray]:
        """Returns the stack, held-out rows, and their log densities without and with flows."""
        weights, held_out, log_probs = self._weighted()
        pairs = zip(weights, [*self._candidates, self.flows], strict=False)
        parts = [(weight / len(fits), part) for weight, fits in pairs if weight for part in fits]
        shares, densities = zip(*parts, strict=True)
        # If only some folds have a flow, scale the weights of their held-out rows up to the total.
        total = sum(part.weights.sum() for _, part in self.splits)
        held_out = held_out._replace(weights=held_out.weights * total / held_out.weights.sum())
        stack = TableStack(list(densities), np.array(shares), self._rounding, self._trees)
        return stack, held_out, log_probs

    def _weighted(self) -> tuple[np.ndarray, Rows, np.ndarray]:
        """Returns weights of candidates, held-out rows, and log densities as in `result`, [2, N].

        If only the first folds have flows, uses only their held-out rows.
        """
        held_out = Rows.concatenated(part for _, part in self.splits[: len(self.flows) or None])
        log_probs = self._log_probs[: len(held_out.values)]
        stacks = [_stacked(log_probs, held_out)]
        if self.flows:
            log_probs = np.column_stack([log_probs, self._held_out_log_prob(self.flows)])
            stacks.append(_stacked(log_probs, held_out))
        return stacks[-1][0], held_out, np.stack([stacks[0][1], stacks[-1][1]])


def _splits(rows: Rows, folds: np.ndarray, columns: Any, number: int, rng: Any) -> Splits:
    """Returns training and held-out rows for the first folds, with missing cells imputed."""
    splits: Any = [(rows.where(folds != i), rows.where(folds == i)) for i in range(number)]
    splits = splits[: folds.max() + 1] if folds.any() else [(rows,)]
    if np.isnan(rows.values).any():
        repeated = ([part.repeated() for part in parts] for parts in splits)
        splits = [with_draws(parts, columns, rng) for parts in repeated]
    # A single row is its own held-out row.
    return [(parts[0], parts[-1]) for parts in splits]


def _log_prob(density: Any, rows: np.ndarray, rounding: tuple[float, ...]) -> np.ndarray:
    """Returns the log density of the events of rows given their conditions, [N].

    With rounding, averages the density over an interval of the rounding width around each
    one-dimensional event. The intervals of numbers at a bound include everything beyond the bound.
    Numbers that overflow float64, or float32 in flows, give -inf.
    """
    width, low, high = rounding
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        log_probs = density.log_prob(rows)
        if width:
            conditions, start, end = rows[:, :-1], rows[:, -1] - width / 2, rows[:, -1] + width / 2
            ends = np.where(start < low, -np.inf, start), np.where(end > high, np.inf, end)
            below, up_to = (density.tails(np.column_stack([conditions, y]))[0] for y in ends)
            mass = up_to - below
            # In the far tails, differences of probabilities lose precision. There the density is
            # nearly constant over the interval, so we use the density instead of its mean.
            log_means = np.log(mass.clip(_LEAST_MASS, 1) / width)
            log_probs = np.where(mass > _LEAST_MASS, log_means, log_probs)
    return np.where(np.isnan(log_probs), -np.inf, log_probs)


def _stacked(log_probs: np.ndarray, held_out: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Returns mixture weights, [K], and log densities of held-out rows under the mixture, [N].

    Given the log densities [N, K] of held-out rows, expectation maximization finds the weights that
    maximize the likelihood, a concave problem. The first density, a Student t, always gets a small
    weight.

    Source: Smyth, Wolpert: Linearly combining density estimators via stacking, 1999.
    """
    densities = np.exp(log_probs - log_probs.max(axis=1, keepdims=True))
    weights = np.full(log_probs.shape[1], 1 / log_probs.shape[1])
    for _ in range(_MAX_STEPS):
        shares = densities * weights
        shares /= shares.sum(axis=1, keepdims=True)
        before, weights = weights, held_out.mean(shares)
        if abs(weights - before).max() < _TOLERANCE:
            break
    weights = np.where(weights > _LEAST_WEIGHT, weights, 0.0)
    least = min(_STUDENT_T_WEIGHT, _STUDENT_T_ROWS / held_out.number)
    weights *= (1 - least) / weights.sum()
    weights[0] += least
    return weights, logsumexp(log_probs, axis=1, b=weights)
