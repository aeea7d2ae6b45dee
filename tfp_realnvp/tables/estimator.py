"""Base class of the table estimators: arguments, checks of rows, and the fit."""

from __future__ import annotations

import copy
import math
import types
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data

from tfp_realnvp.internal import validation
from tfp_realnvp.tables import frames
from tfp_realnvp.tables.categories import codes_of, one_hot
from tfp_realnvp.tables.domains import Limits, checked_limits
from tfp_realnvp.tables.imputation import fill, mixture_with_gaps
from tfp_realnvp.tables.progress import Progress
from tfp_realnvp.tables.stack import fit_table_stack
from tfp_realnvp.tables.table import Columns, Rows, checked_weights

__all__ = ["EstimatorWithGaps", "TableEstimator", "generator"]


class EstimatorWithGaps(BaseEstimator):
    """A scikit-learn estimator that accepts missing cells in X."""

    def __sklearn_tags__(self) -> Any:
        """See scikit-learn."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


class TableEstimator(EstimatorWithGaps):
    """Base of `FlowDensity` and `FlowRegressor`."""

    def __init__(
        self,
        num_flows: int | None = None,
        *,
        num_couplings: int | None = None,
        num_blocks: int = 1,
        num_filters: int | None = None,
        transformer: Any = None,
        degrees_of_freedom: float = 8.0,
        noise: float | None = None,
        dequantize: bool = True,
        bounds: dict[Any, Any] | None = None,
        periods: dict[Any, float] | None = None,
        categorical_features: Any = "from_dtype",
        max_steps: int | None = None,
        patience: int = 10,
        learning_rate: float = 2e-3,
        batch_size: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int | str = "auto",
    ) -> None:
        """Constructs the estimator; `fit` checks the arguments.

        The modeled columns are X in `FlowDensity`, and y in `FlowRegressor`.

        Args:
          num_flows: number of flows, at least 2. The rows are split into as many parts, and each
            flow is trained without one of them. Defaults to 5; from 50,000 rows on, the default is
            a single flow that holds out a tenth of the rows.
          num_couplings: couplings of a flow, as in `RealNVPVector`; by default 8, or 2 for a single
            modeled column.
          num_blocks: residual blocks of each network.
          num_filters: units of each layer of the networks; by default 32, or 64 from 50,000 rows
            on.
          transformer: transformer of the couplings, as in `RealNVPVector`; by default `'affine'`,
            or `'rational_quadratic_spline'` for a single modeled column, which affine maps could
            only shift and scale.
          degrees_of_freedom: degrees of freedom of the Student t distributions, whose heavy tails
            cover rows far from all others.
          noise: standard deviation of the noise in the training of flows, for columns of variance
            1. With `None` the noise decreases from 0.3 to 0.01, and early stopping selects the
            noise. In `FlowDensity` a number is also the minimum standard deviation of normal
            distributions, which prevents narrow peaks.
          dequantize: whether to add noise to coarsely rounded columns in training: columns of which
            three quarters of the distinct values are multiples of a step 1, 0.5, 0.1, 0.05, ...,
            1e-8, 5e-9 of at least a tenth of the column's standard deviation. The step is the width
            of the noise.
          bounds: limits of columns of X, by name or position, as in `{"price": (0, None)}`; `None`
            stands for no limit. Limits are inclusive. Numbers out of bounds raise an error in
            `fit`, and later have density 0; in conditions they are clipped.
          periods: periods of columns of X, as in `{"wind": 360}` for directions in degrees.
          categorical_features: names or positions of the columns of X that are categories. By
            default, all columns of a `DataFrame` that are categories, strings, objects or bools.
          max_steps: largest number of training steps of each flow; by default 2,000, or 6,000 from
            50,000 rows on.
          patience: number of validations without improvement after which training stops.
            Validations are `max(50, max_steps // 40)` steps apart. The flow keeps the weights of
            the best validation, or its initial weights if it improves by at most a standard error.
          learning_rate: learning rate of Adam, at the start of its cosine annealing.
          batch_size: rows per training step, drawn with replacement; by default 128, or 512 from
            50,000 rows on.
          random_state: as in scikit-learn: an integer gives reproducible results.
          verbose: 1 prints progress, 0 nothing, and `'auto'` a few lines if `fit` takes longer than
            5 s.
        """
        self.num_flows = num_flows
        self.num_couplings = num_couplings
        self.num_blocks = num_blocks
        self.num_filters = num_filters
        self.transformer = transformer
        self.degrees_of_freedom = degrees_of_freedom
        self.noise = noise
        self.dequantize = dequantize
        self.bounds = bounds
        self.periods = periods
        self.categorical_features = categorical_features
        self.max_steps = max_steps
        self.patience = patience
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.random_state = random_state
        self.verbose = verbose

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _fit_or_keep(self, *arguments: Any) -> Any:
        """Calls `_fit`; after an error or an interrupt the estimator is unchanged.

        `_fit` sets attributes of a copy. The estimator takes all attributes at once at the end.
        """
        for name, least in (("num_flows", 2), ("max_steps", 1), ("patience", 1), ("batch_size", 1)):
            if getattr(self, name) is not None:
                validation.count(getattr(self, name), name, least, self._name)
        if self.noise is not None:
            expected = f"{self._name}: expected noise of at least 0, or None"
            validation.real(self.noise, lambda x: 0 <= x < math.inf, expected)
        for name in ("degrees_of_freedom", "learning_rate"):
            validation.positive(getattr(self, name), f"{self._name}: expected a positive {name}")
        validation.flag(self.dequantize, f"{self._name}: expected a bool as dequantize")
        fitted = copy.copy(self)
        fitted._fit(*arguments)
        self.__dict__ = fitted.__dict__
        return self

    def _fit(self, X: Any, y: Any, sample_weight: Any) -> None:
        """Sets the attributes of a fit."""
        raise NotImplementedError

    def _fit_stacks(
        self,
        x: np.ndarray,
        y: np.ndarray,
        labels: np.ndarray,
        weights: Any,
        names: list[str],
        x_limits: Limits,
        limits: Limits,
        is_density: bool,
    ) -> tuple[np.ndarray, np.ndarray, list[Any]]:
        """Sets `_stacks`, densities of y [N, D] given x [N, C] for each label.

        Returns the distinct labels of positive weight, their frequencies, and for each label the
        learned and held-out parts of x, with missing cells drawn. With `is_density`, a rounded y
        has a density, otherwise a probability. `weights` are the user's; `names` belong to the
        columns of y.
        """
        weights = checked_weights(weights, len(y), self._name)
        x, y, labels = (array[weights > 0] for array in (x, y, labels))
        labels, groups = np.unique(labels, return_inverse=True)
        table, weights = Rows.merged(np.column_stack([groups, x, y]), weights[weights > 0])
        groups, x, y = np.split(table, [1, 1 + x.shape[1]], axis=1)
        are_groups = [groups[:, 0] == group for group in range(len(labels))]
        is_empty = np.any([np.isnan(y[is_group]).all(axis=0) for is_group in are_groups], axis=0)
        expected = f"{self._name}: expected a known cell in each column and class"
        validation.require(not is_empty.any(), expected, f"none in {np.array(names)[is_empty]}")
        tables = [Rows(each, weights).with_known_cells(np.random.default_rng(0)) for each in (x, y)]
        self._x_columns, self._columns = (
            Columns.of(table, self.dequantize, self._name, of_values)
            for table, of_values in zip(tables, (x_limits, limits), strict=True)
        )
        is_missing, self._filler = np.isnan(x), None
        self._x_gaps = is_missing.any(axis=0) & ~is_missing.all(axis=0)
        if x.shape[1] and not is_density:
            standardized = Rows(self._conditions_of(x), weights)
            self._filler = mixture_with_gaps(standardized, np.copy, np.random.default_rng(0))
        rows = Rows(self._standardized(x, y), weights)
        num_conditions, is_one = rows.values.shape[1] - y.shape[1], y.shape[1] == 1
        self._columns.warn(tables[1].values, names, self._name, is_density and not self.noise)
        progress = Progress(self.verbose)

        def snapped(drawn: np.ndarray) -> np.ndarray:
            """Rounds drawn cells to categories, or to known values of columns with few values."""
            indicators, numbers = np.split(drawn, [num_conditions], axis=1)
            codes = codes_of(self._x_columns.in_units(indicators), self._sizes)
            indicators = self._x_columns.standardized(one_hot(codes, self._sizes))
            for i in np.flatnonzero(self._columns.takes_few_values):
                values = np.unique(rows.values[:, num_conditions + i])
                numbers[:, i] = values[np.nanargmin(abs(numbers[:, [i]] - values), axis=1)]
            return np.column_stack([indicators, numbers])

        def of_x(values: np.ndarray) -> np.ndarray:
            return np.rint(self._x_columns.in_units(values[:, : x.shape[1]]))

        options = types.SimpleNamespace(
            **self.get_params(deep=False), progress=progress, is_density=is_density, snapped=snapped
        )
        if options.num_couplings is None:
            options.num_couplings = 2 if is_one else 8
        if options.transformer is None:
            options.transformer = "rational_quadratic_spline" if is_one else "affine"
        rng = generator(self.random_state)
        fits = [
            fit_table_stack(rows.where(is_group), self._columns, options, rng, num_conditions)
            for is_group in are_groups
        ]
        stacks, splits, log_probs, histories = zip(*fits, strict=True)
        self._stacks = list(stacks)
        held_out = [part for of_group in splits for _, part in of_group]
        splits = [[[part.mapped(of_x) for part in parts] for parts in each] for each in splits]
        self.rounding_widths_ = self._columns.widths
        self.history_ = [history for of_stack in histories for history in of_stack]
        self.n_steps_ = np.array([each["kept_step"] for each in self.history_], int)
        self.noise_ = np.array([each["kept_noise"] for each in self.history_], float)
        all_held_out = Rows(*map(np.concatenate, zip(*held_out, strict=True)))
        held_out_y = self._columns.in_units(all_held_out.values[:, -y.shape[1] :])
        log_slopes = self._columns.log_slopes(held_out_y).sum(axis=1)
        start, end = np.concatenate(log_probs).T + log_slopes
        (self.score_start_, _), (self.score_held_out_, _), self.flow_gain_ = (
            all_held_out.mean_and_error(values) for values in (start, end, end - start)
        )
        frequencies = np.bincount(groups[:, 0].astype(int), weights) / weights.sum()
        return labels, frequencies, splits

    def _standardized(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Returns standardized rows [N, C + D] of x [N, C] and y [N, D]."""
        return np.column_stack([self._conditions_of(x), self._columns.standardized(y)])

    def _conditions_of(self, x: np.ndarray) -> np.ndarray:
        """Returns standardized x. `FlowRegressor` fills missing cells and adds their indicators."""
        conditions = self._x_columns.standardized(x)
        # The fit knows no other value of a column that is constant or has no known cell.
        conditions[..., self._x_columns.is_constant] = 0.0
        if self._filler is None:
            return conditions
        return np.column_stack([fill(self._filler, conditions), np.isnan(x[:, self._x_gaps])])

    def _limits(self, rows: np.ndarray) -> tuple[list[str], Limits]:
        """Returns names and limits of the numeric columns of rows [N, D]."""
        names = self._names
        options = self.bounds, self.periods, rows, names, self._categories, self._name
        limits = checked_limits(*options)
        numbers = [i for i in range(len(names)) if i not in self._categories]
        return [str(names[i]) for i in numbers], {numbers.index(i): limits[i] for i in limits}

    def _split(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the indicators of categories and the numeric columns of rows, float64."""
        is_category = self._are_categories
        return one_hot(rows[:, is_category], self._sizes), rows[:, ~is_category].astype(np.float64)

    @property
    def _are_categories(self) -> np.ndarray:
        return np.isin(np.arange(self.n_features_in_), list(self._categories))

    @property
    def _sizes(self) -> list[int]:
        return [len(values) for values in self._categories.values()]

    def _validated(self, X: Any, *y: Any, **options: Any) -> Any:
        """Returns X, or X and y, float32 or float64, checked by scikit-learn.

        Missing cells of X are NaN, and categories are codes. `fit` learns the categories; later
        calls pass `reset=False`.
        """
        is_fit, features = options.get("reset", True), self.categorical_features
        if is_fit:
            self._categories: dict[int, list[Any]] = {}
        is_default = features is None or (isinstance(features, str) and features == "from_dtype")
        is_frame = frames.is_frame(X)
        if is_frame or self._categories or not is_default:
            X = frames.as_frame(X)
            if is_fit:
                self._categories = frames.categories_of(X, features, self._name)
            elif self._categories:
                # Check here: categories are looked up by position before scikit-learn compares the
                # names.
                names = list(getattr(self, "feature_names_in_", X.columns)) if is_frame else None
                is_same = X.shape[1] == self.n_features_in_ and names in (None, list(X.columns))
                expected = f"{self._name}: expected the {self.n_features_in_} columns of fit"
                validation.require(is_same, expected, list(X.columns))
            frames.check_columns(X, self._categories, self._name)
            X = frames.coded(X, self._categories, self._name)
        names = list(X.columns) if is_frame else None
        X, *y = (
            np.ma.filled(table.astype(np.float64), np.nan) if np.ma.isMaskedArray(table) else table
            for table in (X, *y)
        )
        options = {"dtype": [np.float64, np.float32], "ensure_all_finite": "allow-nan", **options}
        checked = validate_data(self, X, *y, **options)
        if is_fit:
            self._names = list(range(self.n_features_in_)) if names is None else names
        return checked


def generator(random_state: Any) -> np.random.Generator:
    """Returns a generator for a scikit-learn `random_state`."""
    return np.random.default_rng(check_random_state(random_state).randint(2**31 - 1))
