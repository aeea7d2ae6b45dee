"""The distribution of numbers given others, p(y | x), as an estimator of scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy.optimize import elementwise
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from tfp_realnvp.internal import validation
from tfp_realnvp.tables import columns, weighted_rows
from tfp_realnvp.tables.columns import Columns
from tfp_realnvp.tables.estimator import TableEstimator, generator
from tfp_realnvp.tables.numerics import even_points
from tfp_realnvp.tables.stack import fit_table_stack
from tfp_realnvp.tables.weighted_rows import Rows

__all__ = ["FlowRegressor"]

_NUM_POINTS, _NUM_POINTS_OF_QUANTILES = 256, 1_024
_CHUNK_SIZE = 65_536
_TOLERANCE = 1e-6  # of the probability at a quantile


class FlowRegressor(MultiOutputMixin, RegressorMixin, TableEstimator):
    r"""Distribution p(y | x) of one or several numbers y, by Real NVP, for scikit-learn.

    A regression predicts the mean of y. This estimator has the whole distribution: its density,
    samples, quantiles and intervals. The distribution can have any shape, which can depend on x in
    any way: errors that grow, are skewed, or have several modes.

    It is fitted as `FlowDensity` is. One part of the rows after another is held out, several
    densities are fitted to the other rows, and they are mixed with the weights that make held-out
    y most probable:

    *   Linear regression with Student t errors. Its ridge penalty is the best one for held-out
        rows.
    *   Mixtures of 1 to 32 normal distributions of x and y, given x.
    *   Flows with x as condition, which start as the linear regression and learn what is different.
        There are none with fewer than 150 rows, or if the first one adds no more than a standard
        error.

    Columns of X are standardized. Missing values and columns of text are refused. Copies of a row,
    with the same x and y, are held out together, whatever their weight.

    A single y that is rounded coarsely, as grades and counts are, is scored as rounded:
    `score_samples` is log (P(y - w/2 < Y < y + w/2 | x) / w), with the width w of the rounding in
    `rounding_widths_`. For whole numbers, w = 1, it is a log probability, at most 0. Several y have
    no such probability: their density is smoothed by the variance of the rounding, w² / 12.

    #### Example

    >>> import numpy as np, tfp_realnvp as tfr
    >>> rng = np.random.default_rng(0)
    >>> x = rng.uniform(0, 4, size=[120, 1])
    >>> y = 2 * x[:, 0] + (0.1 + x[:, 0]) * rng.normal(size=120)    # errors that grow
    >>> regressor = tfr.FlowRegressor(random_state=0).fit(x, y)
    >>> regressor.predict([[0.5], [3.0]]).shape
    (2,)
    >>> low, high = regressor.predict_interval([[0.5], [3.0]], 0.9)
    >>> bool(high[1] - low[1] > 2 * (high[0] - low[0]))
    True
    >>> regressor.score_samples([[0.5]], [1.0]).shape               # log p(y | x) in nats
    (1,)
    >>> regressor.sample([[0.5], [3.0]], 100).shape
    (100, 2)

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, 2017.
    Smyth, Wolpert: Linearly combining density estimators via stacking, 1999, for the mixture.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> FlowRegressor:
        """Estimates p(y | x).

        A row of weight two counts as that row twice, and a row of weight zero as none. The order of
        the rows does not matter. If `fit` raises an error or is interrupted, the estimator stays as
        it was.

        Args:
          X: rows [N, C] of finite numbers, with N at least 2.
          y: numbers [N], or rows [N, D] of several numbers, whose joint distribution is estimated.
          sample_weight: nonnegative weights [N] of the rows, or `None` for ones.

        Returns:
          The estimator, with these attributes:

          *   `score_held_out_`: mean of log p(y | x) of held-out rows in nats. Weights and early
              stopping have seen these rows: it is a little too high.
          *   `score_start_`: the same without flows.
          *   `flow_gain_`: their difference, and its standard error over the rows.
          *   `history_`, `n_steps_`, `noise_`: of each flow that was trained, as in `FlowDensity`.
          *   `rounding_widths_`: widths of the noise of rounded columns of y, [D].

        Raises:
          ValueError: if rows or weights are not as above, or an argument of the constructor is out
            of range.
        """
        return self._fit_or_keep(X, y, sample_weight)

    def _fit(self, X: Any, y: Any, sample_weight: Any) -> None:
        self._check_arguments()
        checks = {"multi_output": True, "y_numeric": True, "ensure_min_samples": 2}
        X, y = self._validated(X, y, **checks)
        self._is_single = y.ndim == 1
        weights = weighted_rows.checked_weights(sample_weight, len(X), self._name)
        is_used, number = weights > 0, X.shape[1]
        rows = np.concatenate([X, y.reshape(len(y), -1)], axis=1)[is_used]
        groups = np.zeros(len(rows), int)
        rows, _, weights = weighted_rows.merge(rows, groups, weights[is_used])
        x, y = np.split(rows, [number], axis=1)
        names = ["y"] if y.shape[1] == 1 else [f"y[:, {i}]" for i in range(y.shape[1])]
        columns.warn_of_redundant_columns(y, names, self._name)
        self._x_columns = Columns.of(x, weights, self.dequantize, self._name)
        self._y_columns = Columns.of(y, weights, self.dequantize, self._name)
        options = self._stack_options(self._y_columns)
        # A rounded y is scored as rounded, so that narrow peaks gain nothing. Normal mixtures have
        # a least variance of conditions of their own.
        options = options._replace(
            least_variances=[np.append(np.zeros(number), options.least_variances[0])],
            width=options.widths[0] if y.shape[1] == 1 else 0.0,
        )
        standardized = Rows(self._standardized(x, y), weights)
        fit = fit_table_stack(standardized, options, generator(self.random_state), number)
        self._stack = fit.stack
        self._set_results([fit], self._y_columns)

    def score_samples(self, X: Any, y: Any = None) -> np.ndarray:
        """Returns log p(y | x) of each row in nats, of y in its own units.

        Whole numbers y with a coarse rounding have log probabilities, see the class.

        Args:
          X: rows [N, C].
          y: numbers [N], or rows [N, D] as in `fit`. With `None`, the result is what to expect, the
            mean of log p(y | x) over y, from 256 points: the negative entropy. It is low where
            little is known of y.

        Returns:
          Log densities [N], float64.
        """
        rows = self._conditions(X) if y is None else self._rows(X, y)
        if y is None:
            log_probs = [
                self._stack.log_prob(points.reshape([-1, points.shape[-1]]))
                .reshape(points.shape[:2])
                .mean(axis=0)
                for points in self._points(rows, _NUM_POINTS)
            ]
            log_probs = np.concatenate(log_probs)
        else:
            log_probs = self._stack.log_prob(rows)
        return log_probs + self._y_columns.log_det

    def cdf(self, X: Any, y: Any) -> np.ndarray:
        """Returns the probability of a smaller y given x, [N], for a single y.

        If the distributions are right, these numbers are uniform in (0, 1).

        Args:
          X: rows [N, C].
          y: numbers [N].

        Raises:
          ValueError: if the estimator was fitted to several y.
        """
        rows = self._rows(X, y)
        validation.require(
            self._size == 1, f"{self._name}: expected a fit to a single y for cdf", self._size
        )
        return self._stack.cdf(rows)

    def predict(self, X: Any) -> np.ndarray:
        """Returns the mean of p(y | x) of each row, [N], or [N, D] for several y."""
        conditions = self._conditions(X)
        return self._in_units(self._stack.mean_of_events(conditions))

    def predict_quantiles(self, X: Any, quantiles: Sequence[float]) -> np.ndarray:
        """Returns quantiles of p(y | x), [Q, N], or [Q, N, D] of each of several y.

        Those of a single y are exact. Those of several y are of 1,024 points, and about 0.05
        standard deviations off.

        Args:
          X: rows [N, C].
          quantiles: Q numbers between 0 and 1.

        Raises:
          ValueError: if a quantile is not between 0 and 1.
        """
        conditions = self._conditions(X)
        levels = np.asarray(quantiles, np.float64)
        if levels.ndim != 1 or not levels.size or not ((levels > 0) & (levels < 1)).all():
            raise ValueError(
                f"{self._name}: expected quantiles between 0 and 1, as in [0.1, 0.5, 0.9], got "
                f"{quantiles!r}."
            )
        if self._size > 1:
            quantiles = [
                np.quantile(points[..., -self._size :], levels, axis=0)
                for points in self._points(conditions, _NUM_POINTS_OF_QUANTILES)
            ]
            return self._in_units(np.concatenate(quantiles, axis=1))
        repeated = np.tile(conditions, [len(levels), 1])
        targets = np.repeat(levels, len(conditions))

        def excess(events: np.ndarray, indices: np.ndarray) -> np.ndarray:
            rows = np.column_stack([repeated[indices], events])
            return self._stack.cdf(rows) - targets[indices]

        guesses = np.tile(self._stack.mean_of_events(conditions)[:, 0], len(levels))
        indices = (np.arange(len(targets)),)
        bracket = elementwise.bracket_root(excess, guesses - 1, guesses + 1, args=indices).bracket
        tolerances = {"fatol": _TOLERANCE}
        events = elementwise.find_root(excess, bracket, args=indices, tolerances=tolerances).x
        return self._in_units(events.reshape([len(levels), -1, 1]))

    def predict_interval(self, X: Any, probability: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Returns the bounds of central intervals of p(y | x), each [N], or [N, D].

        Args:
          X: rows [N, C].
          probability: of the interval, above 0 and below 1, for each y. Below it and above it are
            equal parts of the rest.

        Raises:
          ValueError: if the probability is not above 0 and below 1.
        """
        expected = f"{self._name}: expected a probability above 0 and below 1"
        probability = validation.real(probability, lambda value: 0 < value < 1, expected)
        rest = (1 - probability) / 2
        low, high = self.predict_quantiles(X, [rest, 1 - rest])
        return low, high

    def sample(
        self,
        X: Any,
        n_samples: int = 1,
        random_state: int | np.random.RandomState | None = None,
    ) -> np.ndarray:
        """Returns random y given x, [n_samples, N], or [n_samples, N, D] for several y.

        Args:
          X: rows [N, C].
          n_samples: number of samples for each row, at least 1.
          random_state: as in scikit-learn.

        Raises:
          ValueError: if `n_samples` is less than 1.
        """
        conditions = self._conditions(X)
        expected = f"{self._name}: expected n_samples of at least 1"
        n_samples = validation.integer(n_samples, 1, expected)
        uniforms = generator(random_state).random([n_samples * len(conditions), 2 + self._size])
        events = self._stack.sample(np.tile(conditions, [n_samples, 1]), uniforms)
        return self._in_units(events.reshape([n_samples, -1, self._size]))

    @property
    def _size(self) -> int:
        check_is_fitted(self)
        return len(self.rounding_widths_)

    def _conditions(self, X: Any) -> np.ndarray:
        """Returns standardized X, [N, C]."""
        check_is_fitted(self)
        return self._x_columns.standardized(self._validated(X, reset=False))

    def _rows(self, X: Any, y: Any) -> np.ndarray:
        """Returns standardized X and y, [N, C + D]."""
        check_is_fitted(self)
        X, y = self._validated(X, y, reset=False, multi_output=True, y_numeric=True)
        if y.ndim != (1 if self._is_single else 2) or y.size != len(X) * self._size:
            expected = "numbers [N]" if self._is_single else f"rows [N, {self._size}]"
            raise ValueError(f"{self._name}: expected y as {expected}, got the shape {y.shape}.")
        return self._standardized(X, y.reshape(len(y), -1))

    def _standardized(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Returns rows [N, C + D] of x [N, C] and y [N, D]."""
        return np.column_stack([self._x_columns.standardized(x), self._y_columns.standardized(y)])

    def _in_units(self, events: np.ndarray) -> np.ndarray:
        """Returns y in its own units, [...] or [..., D], of standardized ones [..., D]."""
        events = self._y_columns.in_units(events)
        return events[..., 0] if self._is_single else events

    def _points(self, conditions: np.ndarray, number: int) -> Iterator[np.ndarray]:
        """Yields rows [number, n, C + D] for n conditions, with even points of p(y | x)."""
        points = even_points(number, 2 + self._size)
        num_rows = max(1, _CHUNK_SIZE // number)
        for start in range(0, len(conditions), num_rows):
            chunk = conditions[start : start + num_rows]
            uniforms = np.repeat(points, len(chunk), axis=0)
            chunk = np.tile(chunk, [number, 1])
            rows = np.concatenate([chunk, self._stack.sample(chunk, uniforms)], axis=1)
            yield rows.reshape([number, -1, rows.shape[1]])
