"""A scikit-learn estimator of p(y | x), the distribution of numbers y given features x."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import elementwise
from scipy.stats import qmc
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from tfp_realnvp.internal import batch_dims, validation
from tfp_realnvp.tables import domains, frames, missing
from tfp_realnvp.tables.estimator import TableEstimator, generator
from tfp_realnvp.tables.table import Rows, check_spreads, checked_weights

_NUM_POINTS, _NUM_POINTS_OF_QUANTILES = 256, 1_024
_CHUNK_SIZE = 65_536
# Relative tolerance of the smaller tail probability at a quantile.
_TOLERANCE, _LEAST_TAIL = 1e-6, 1e-300


class FlowRegressor(MultiOutputMixin, RegressorMixin, TableEstimator):
    r"""A scikit-learn estimator of p(y | x) for one or several numbers y, with Real NVP.

    The distribution can depend on x in any way: errors can grow with x, be skewed, or have several
    modes.

    Like `FlowDensity`, the estimator splits the rows into folds. For each fold, it fits several
    kinds of densities to the other folds. The result is their mixture, with the weights that
    maximize the likelihood of held-out y. The kinds are:

    *   Linear regression with Student t errors. Held-out rows select the ridge penalty.
    *   Mixtures of 1 to 32 normal distributions of (x, y), conditioned on x. Further mixtures model
        x and the errors of the linear regression, which suits a y that is nearly linear in x.
    *   For a single y and at least 100 rows, boosted trees: scikit-learn's
        `HistGradientBoostingRegressor` learns the mean m(x) of y, and then the scale s(x) of
        held-out errors. Student t distributions and mixtures as above model (y - m(x)) / s(x) given
        m(x) and log s(x).
    *   Flows conditioned on x. Initially, a flow equals the linear regression or, if trees are
        used, the Student t density of the errors. The mixture has no flows if there are fewer than
        150 rows, or if the first flow improves the mean log density by at most one standard error,
        or with trees by at most 0.01 nats. With trees and the default `num_flows`, flows need 2,000
        rows: in our measurements they added nothing on smaller tables.

    Indicators replace categories in X, see `categorical_features`. Cosine and sine of the angle
    replace periodic columns. Equal rows are always in the same fold.

    Missing cells of X, NaN, become their means given the other cells under a normal mixture. Each
    column with missing cells in `fit` also gets a missingness indicator. The estimator thus learns
    p(y | known cells, which cells are missing). After `fit`, a warning names columns with missing
    cells that had none in `fit`.

    A single y can be coarsely rounded, such as grades or counts. `score_samples` then averages the
    density over the rounding interval: log (P(y - w/2 < Y < y + w/2 | x) / w), with the rounding
    width w from `rounding_widths_`. For whole numbers, w = 1, this is a log probability. For
    several y, noise with the variance of the rounding, w² / 12, smooths the density instead.
    Samples and quantiles of a coarsely rounded y are multiples of w. Counts need the bounds
    `{"y": (0, None)}`: the probability of 0 then includes all mass below.

    #### Example

    >>> import numpy as np, tfp_realnvp as tfr
    >>> rng = np.random.default_rng(0)
    >>> x = rng.uniform(0, 4, size=[120, 1])
    >>> y = 2 * x[:, 0] + (0.1 + x[:, 0]) * rng.normal(size=120)    # errors that grow
    >>> regressor = tfr.FlowRegressor(random_state=0, verbose=0).fit(x, y)
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
    Friedman: Greedy function approximation: a gradient boosting machine, 2001, for the trees.
    """

    _is_density = False

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "FlowRegressor":
        """Estimates p(y | x).

        A row of weight two counts twice, and a row of weight zero is ignored. The order of the rows
        does not matter. If `fit` raises an error, the estimator does not change.

        Ctrl-C during the training of flows ends the training, as in `FlowDensity.fit`. Before the
        training of flows, Ctrl-C raises `KeyboardInterrupt`, and the estimator does not change.

        Args:
          X: rows [N, C] of finite numbers and categories, with N at least 2, and NaN or `None` in
            missing cells.
          y: numbers [N], or rows [N, D] of several numbers, whose joint distribution is estimated.
          sample_weight: nonnegative weights [N] of the rows, or `None` for ones.

        Returns:
          The estimator, with the attributes of a fitted `FlowDensity` except `classes_` and
          `class_prior_`.
          `score_held_out_` and `score_start_` are means of log p(y | x) over held-out rows in nats.
          `rounding_widths_` refers to the columns of y.

        Raises:
          ValueError: if the data are not as above, or a constructor argument is out of range.
        """
        return self._fit_or_keep(X, y, sample_weight)

    def _fit(self, X: Any, y: Any, sample_weight: Any) -> None:
        dtype = getattr(np.asarray(y) if isinstance(y, list) else y, "dtype", None)
        kind = getattr(dtype, "kind", "f")
        expected = "numbers as y; for labels call FlowDensity().fit(X, y)"
        expected += ", for bools as numbers fit(X, y.astype(int))" * (kind == "b")
        self._require(kind in "iufcO", expected, dtype)
        if kind == "O":
            values = pd.Series(np.ravel(np.asarray(y, object)))
            self._require(frames.is_numbers(values), expected, values[0])
        X, y = self._validated(X, y, multi_output=True, y_numeric=True, ensure_min_samples=2)
        self._is_single = y.ndim == 1
        y = y.reshape(len(y), -1)
        names = ["y"] if y.shape[1] == 1 else [f"y[:, {i}]" for i in range(y.shape[1])]
        weights = checked_weights(sample_weight, len(y), self._name)
        X, y, weights = (each[weights > 0] for each in (X, y, weights))
        check_spreads(y, names, self._name)
        of_y, bounds = {}, self.bounds
        if isinstance(bounds, dict):
            of_y = {name: bounds[name] for name in names if name in {*bounds} - {*self._names}}
            bounds = {name: bounds[name] for name in bounds if name not in of_y}
        limits_of_y = domains.checked_limits(of_y, None, y, names, (), self._name)
        X, _, limits = self._limits(X, bounds)
        self._periods = {i: limit for i, limit in limits.items() if not isinstance(limit, tuple)}
        bounds = {i: limit for i, limit in limits.items() if i not in self._periods}
        self._size, self._has_gaps = y.shape[1], np.isnan(X).any(axis=0)
        # Merging equal rows makes a fit independent of the order and repetition of rows.
        table, weights = Rows.merged(np.column_stack([self._encoded(X), y]), weights)
        x, y = np.split(table, [-self._size], axis=1)

        self._x_columns = self._columns_of(x, weights, bounds)
        self._columns = self._columns_of(y, weights, limits_of_y)
        self._x_gaps = np.isnan(x).any(axis=0) & ~np.isnan(x).all(axis=0)
        standardized = Rows(super()._conditions_of(x), weights)
        self._filler = missing.mixture_with_gaps(standardized, np.random.default_rng(0))
        conditions, no_groups = self._conditions_of(x), np.zeros(len(y), int)
        self._fit_flows(self._fit_simple_densities(conditions, y, no_groups, weights, names))
        self._stack = self._stacks[0]

    def score_samples(self, X: Any, y: Any = None) -> np.ndarray:
        """Returns log p(y | x) of each row in nats, [N], for y in its original units.

        For a coarsely rounded y, see the docstring of the class.

        Args:
          X: rows [N, C].
          y: numbers [N], or rows [N, D] as in `fit`. For `None`, the result is the negative entropy
            of p(y | x), a mean of log p(y | x) over 256 samples. It is lower if y is less certain.
        """
        if y is None:
            means = []
            for points in self._points(self._conditions(X), _NUM_POINTS):
                rows, events = np.split(np.concatenate(points), [-self._size], axis=1)
                log_probs = self._log_probs(rows, self._in_units(events).reshape(events.shape))
                means.append(log_probs.reshape(points.shape[:2]).mean(axis=0))
            return np.concatenate(means)
        return self._log_probs(*self._conditions_and_y(X, y))

    def cdf(self, X: Any, y: Any) -> np.ndarray:
        """Returns the CDF P(Y <= y | x) of each row, [N], for a single y [N] and X [N, C].

        If p(y | x) is correct, these probabilities are uniform in (0, 1), except for a coarsely
        rounded y, whose CDF is a step function.
        """
        conditions, y = self._conditions_and_y(X, y)
        self._require(self._size == 1, "a fit to a single y for the CDF", self._size)
        (low, high), half = self._columns.ends(), self._columns.widths / 2
        is_below = y[:, 0] < low
        # The last number on the grid up to y represents the numbers up to half a width above.
        y = np.where(half, self._columns.on_grid(y - half * (1 - 1e-6)) + half, y)
        cdf = self._stack.tails(np.column_stack([conditions, self._columns.standardized(y)]))[0]
        return np.select([is_below, y[:, 0] >= high], [0.0, 1.0], cdf)

    def predict(self, X: Any) -> np.ndarray:
        """Returns the mean of p(y | x) of each row, [N], or [N, D] for several y."""
        conditions = self._conditions(X)
        y = self._columns.in_units(self._stack.mean_of_events(conditions))
        if self._columns.domains:
            parts = (part[..., -self._size :] for part in self._points(conditions, _NUM_POINTS))
            y = np.concatenate([self._columns.in_units(part).mean(axis=0) for part in parts])
        return y[..., 0] if self._is_single else y

    def predict_quantiles(self, X: Any, quantiles: Sequence[float]) -> np.ndarray:
        """Returns quantiles of p(y | x), [Q, N], or [Q, N, D] for each of several y.

        For a single y, the probability of the smaller tail has a relative error of at most 1e-6, or
        1e-4 if flows, which use float32, dominate the tail. For several y, the method computes the
        quantiles from 1,024 samples, with errors of about 0.05 standard deviations.

        Args:
          X: rows [N, C].
          quantiles: Q probabilities between 0 and 1; other values raise a `ValueError`.
        """
        conditions = self._conditions(X)
        levels = np.asarray(quantiles, np.float64)
        is_valid = levels.ndim == 1 and levels.size and ((levels > 0) & (levels < 1)).all()
        self._require(is_valid, "quantiles between 0 and 1, as in [0.1, 0.5, 0.9]", quantiles)
        if self._size > 1:
            parts = self._points(conditions, _NUM_POINTS_OF_QUANTILES)
            of_parts = [np.quantile(part[..., -self._size :], levels, axis=0) for part in parts]
            return self._in_units(np.concatenate(of_parts, axis=1))
        repeated = np.tile(conditions, [len(levels), 1])
        is_low = np.repeat(levels <= 0.5, len(conditions))
        log_tails = np.repeat(np.log(np.minimum(levels, 1 - levels)), len(conditions))

        def excess(events: np.ndarray, indices: np.ndarray) -> np.ndarray:
            tails = self._stack.tails(np.column_stack([repeated[indices], events]))
            tail = np.where(is_low[indices], *tails).clip(_LEAST_TAIL)
            difference = np.log(tail) - log_tails[indices]
            return np.where(is_low[indices], difference, -difference)

        guesses = np.tile(self._stack.mean_of_events(conditions)[:, 0], len(levels))
        indices = (np.arange(len(repeated)),)
        bracket = elementwise.bracket_root(excess, guesses - 1, guesses + 1, args=indices).bracket
        tolerances = {"fatol": _TOLERANCE}
        events = elementwise.find_root(excess, bracket, args=indices, tolerances=tolerances).x
        return self._in_units(events.reshape([len(levels), -1, 1]))

    def predict_interval(self, X: Any, probability: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Returns the bounds of central intervals of p(y | x), each [N], or [N, D].

        Args:
          X: rows [N, C].
          probability: probability that each y lies in its interval, above 0 and below 1; other
            numbers raise a `ValueError`. Both tails have equal probability.
        """
        expected = f"{self._name}: expected a probability above 0 and below 1"
        probability = validation.real(probability, lambda value: 0 < value < 1, expected)
        rest = (1 - probability) / 2
        low, high = self.predict_quantiles(X, [rest, 1 - rest])
        return low, high

    def sample(self, X: Any, n_samples: int = 1, random_state: Any = None) -> np.ndarray:
        """Samples y given x, [n_samples, N], or [n_samples, N, D] for several y.

        Args:
          X: rows [N, C].
          n_samples: number of samples for each row, at least 1.
          random_state: as in scikit-learn.
        """
        conditions = self._conditions(X)
        n_samples = validation.count(n_samples, "n_samples", 1, self._name)
        uniforms = generator(random_state).random([n_samples * len(conditions), 2 + self._size])
        events = self._stack.sample(np.tile(conditions, [n_samples, 1]), uniforms)
        return self._in_units(events.reshape([n_samples, -1, self._size]))

    def _conditions(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return self._of_stack(self._validated(X, reset=False))

    def _of_stack(self, X: np.ndarray) -> np.ndarray:
        is_new = np.isnan(X).any(axis=0) & ~self._has_gaps
        if is_new.any():
            names = frames.listed(np.array(self._names, object)[is_new])
            warnings.warn(
                f"{self._name}: some columns had no missing cells in fit; their missing cells "
                f"become means given the other cells: {names}.",
                stacklevel=4,
            )
        return self._stack.conditions(self._conditions_of(self._encoded(X)))

    def _conditions_of(self, x: np.ndarray) -> np.ndarray:
        """Returns standardized x, with missing cells imputed, and missingness indicators."""
        filled = missing.fill(self._filler, super()._conditions_of(x))
        return np.column_stack([filled, np.isnan(x[:, self._x_gaps])])

    def _encoded(self, X: np.ndarray) -> np.ndarray:
        """Replaces periodic columns of X by cosine and sine, and categories by indicators."""
        indicators, numbers = self._split(X)
        positions = list(self._periods)
        angles = 2 * np.pi * numbers[:, positions] / np.array([*self._periods.values()])
        numbers[:, positions] = np.cos(angles)
        return np.column_stack([numbers, np.sin(angles), indicators])

    def _conditions_and_y(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        """Returns conditions for a `TableStack`, and checked y in their original units, [N, D]."""
        check_is_fitted(self)
        X, y = self._validated(X, y, reset=False, multi_output=True, y_numeric=True)
        expected = "y as numbers [N]" if self._is_single else f"y as rows [N, {self._size}]"
        fits = y.ndim == (1 if self._is_single else 2) and y.size == len(X) * self._size
        self._require(fits, expected, y.shape)
        return self._of_stack(X), y.reshape(len(y), -1)

    def _log_probs(self, conditions: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Returns log p(y | x) for y in their original units, [N]."""
        rows = np.column_stack([conditions, self._columns.standardized(y)])
        return self._stack.log_prob(rows) + self._columns.log_slopes(y).sum(axis=1)

    def _in_units(self, events: np.ndarray) -> np.ndarray:
        """Converts standardized y [..., D] to its original units and grid, [...] or [..., D]."""
        events = self._columns.on_grid(self._columns.in_units(events))
        return events[..., 0] if self._is_single else events

    def _points(self, conditions: np.ndarray, number: int) -> Iterator[np.ndarray]:
        """Yields quasi-random samples of p(y | x) for n rows at a time, [number, n, C + D]."""
        points = qmc.Halton(2 + self._size, rng=0).random(number)
        for (chunk,) in batch_dims.slices(max(1, _CHUNK_SIZE // number), conditions):
            uniforms = np.repeat(points, len(chunk), axis=0)
            chunk = np.tile(chunk, [number, 1])
            rows = np.concatenate([chunk, self._stack.sample(chunk, uniforms)], axis=1)
            yield rows.reshape([number, -1, rows.shape[1]])
