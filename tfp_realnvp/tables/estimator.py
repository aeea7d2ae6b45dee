"""Base class of the table estimators: checks rows and fits densities."""

import copy
import warnings
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data

from tfp_realnvp.internal import validation, versions
from tfp_realnvp.internal.progress import Progress
from tfp_realnvp.tables import frames
from tfp_realnvp.tables.domains import Limits, checked_limits, wrapped
from tfp_realnvp.tables.options import Options
from tfp_realnvp.tables.stack import StackFit
from tfp_realnvp.tables.table import Columns, Rows, check_spreads, one_hot

# The warning points to the caller of `fit`, above the frames of `fit`, `_fit_or_keep`, `_fit` and
# `_fit_flows`.
_STACK_LEVEL = 5


class EstimatorWithGaps(BaseEstimator):
    """A scikit-learn estimator that accepts missing cells in X."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Raises `TypeError` for unknown keyword arguments."""
        validation.known_keywords(cls, kwargs)
        return super().__new__(cls)

    def __sklearn_tags__(self) -> Any:
        """See scikit-learn."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


class TableEstimator(Options, EstimatorWithGaps):
    """Base of `FlowDensity` and `FlowRegressor`."""

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state for `pickle`, with the versions that wrote it."""
        return {**super().__getstate__(), "_versions": versions.current()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores the state; warns if another version wrote it."""
        state = dict(state)
        writer, reader = state.pop("_versions", {}), versions.current()
        if writer != reader:
            name = "tfp_realnvp_version"
            warnings.warn(
                f"{self._name}: the pickle was written by tfp_realnvp "
                f"{writer.get(name, 'of an earlier version')}, and this is {reader[name]}. Results "
                "can differ: load the pickle with the version that wrote it, or fit again.",
                stacklevel=2,
            )
        super().__setstate__(state)

    def _fit_or_keep(self, *arguments: Any) -> Any:
        """Calls `_fit` on a copy, then adopts the copy's attributes; an error changes nothing."""
        self._check()
        fitted: Any = copy.copy(self)
        fitted._fit(*arguments)
        self.__dict__ = fitted.__dict__
        return self

    def _columns_of(self, values: np.ndarray, weights: np.ndarray, limits: Limits) -> Columns:
        """Computes the properties of columns [N, D]; fills missing cells with random known ones."""
        rows = Rows(values, weights).with_known_cells(np.random.default_rng(0))
        grid = not self._is_density and values.shape[1] == 1
        return Columns.of(rows, self.dequantize, self._name, limits, grid)

    def _fit_simple_densities(
        self, x: np.ndarray, y: np.ndarray, groups: np.ndarray, weights: np.ndarray, names: Any
    ) -> list[StackFit]:
        """Fits p(y [N, D] | standardized x [N, C]) to each group, by all densities except flows."""
        numbers = range(int(groups.max()) + 1)
        is_empty = np.any([np.isnan(y[groups == i]).all(axis=0) for i in numbers], axis=0)
        none = f"none in {np.array(names)[is_empty]}"
        self._require(not is_empty.any(), "a known cell in each column and class", none)
        self._columns.warn(y, names, self._name, self._is_density and not self.noise)
        progress, rng = Progress("", self.verbose), generator(self.random_state)
        rows = Rows(np.column_stack([x, self._columns.standardized(y)]), weights)
        columns = self._x_columns, self._columns
        return [StackFit(rows.where(groups == i), columns, self, rng, progress) for i in numbers]

    def _fit_flows(self, fits: list[StackFit]) -> None:
        """Trains flows until all are done or until Ctrl-C, and sets the fitted attributes."""
        try:
            for fit in fits:
                fit.add_flows()
            results = [fit.result() for fit in fits]
        except KeyboardInterrupt as e:
            rest = [f" and {n:,} steps of the next one, with its best weights" for n in e.args]
            number = sum(len(fit.history) for fit in fits) - len(rest)
            warnings.warn(
                f"{self._name}: the fit was interrupted after {number} of "
                f"{sum(fit.max_flows for fit in fits)} flows{''.join(rest)}. It keeps these and "
                "all other densities, with the mixture weights that are best for them.",
                ConvergenceWarning,
                stacklevel=_STACK_LEVEL,
            )
            results = [fit.result() for fit in fits]
        self._stacks, held_out, log_probs = zip(*results, strict=True)
        rows = Rows.concatenated(held_out)
        y = self._columns.in_units(rows.values[:, -len(self._columns.center) :])
        start, end = np.concatenate(log_probs, axis=1) + self._columns.log_slopes(y).sum(axis=1)
        moments = map(rows.mean_and_error, (start, end, end - start))
        (self.score_start_, _), (self.score_held_out_, _), self.flow_gain_ = moments
        self.rounding_widths_ = self._columns.widths
        self.history_ = [history for fit in fits for history in fit.history]
        self.n_steps_ = np.array([each["kept_step"] for each in self.history_], int)
        self.noise_ = np.array([each["kept_noise"] for each in self.history_], float)

    def _limits(self, rows: np.ndarray, bounds: Any) -> tuple[np.ndarray, list[str], Limits]:
        """Returns the wrapped rows, and the names, bounds and periods of the numeric columns."""
        names = self._names
        check_spreads(rows, names, self._name)
        limits = checked_limits(bounds, self.periods, rows, names, self._categories, self._name)
        numbers = [i for i in range(len(names)) if i not in self._categories]
        of_numbers = {numbers.index(i): limits[i] for i in limits}
        return wrapped(rows, limits), [str(names[i]) for i in numbers], of_numbers

    def _split(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Splits rows into indicators of their categories and numeric columns, both float64."""
        is_category = self._are_categories
        return one_hot(rows[:, is_category], self._sizes), rows[:, ~is_category].astype(np.float64)

    def _conditions_of(self, x: np.ndarray) -> np.ndarray:
        """Returns standardized x."""
        conditions = self._x_columns.standardized(x)
        # These columns had at most one value in `fit`, so no effect of other values was learned.
        conditions[..., self._x_columns.is_constant] = 0.0
        return conditions

    def _validated(self, X: Any, *y: Any, **options: Any) -> Any:
        """Checks X, or X and y, with scikit-learn, and returns them as float32 or float64.

        In the result, missing cells of X are NaN, and categories are codes. `fit` learns the
        categories; later calls pass `reset=False`.
        """
        is_fit, features = options.get("reset", True), self.categorical_features
        if is_fit:
            self._categories: dict[int, list[Any]] = {}
        is_default = features is None or (isinstance(features, str) and features == "from_dtype")
        is_frame = isinstance(X, pd.DataFrame)
        if is_frame or self._categories or not is_default:
            X = frames.as_frame(X)
            if is_fit:
                self._categories = frames.categories_of(X, features, self._name)
            elif self._categories:
                # `coded` looks up categories by position, before scikit-learn checks the names of
                # the columns. Without this check, reordered columns would get wrong codes.
                names = list(getattr(self, "feature_names_in_", X.columns)) if is_frame else None
                is_same = X.shape[1] == self.n_features_in_ and names in (None, list(X.columns))
                expected = f"{self._name}: expected the {self.n_features_in_} columns of fit"
                if hasattr(self, "feature_names_in_"):
                    expected += ", `X[fitted.feature_names_in_]` (one row: `X.iloc[[i]]`)"
                missing = frames.listed(sorted({*(names or ())} - {*X.columns}, key=str))
                got = f"a table without {missing}" if missing else list(X.columns)
                if not is_same:
                    raise ValueError(f"{expected}, got {got}.")
            frames.check_columns(X, self._categories, self._name)
            X = frames.coded(X, self._categories, self._name)
        else:
            frames.check_cells(X, self._name)
        X, *y = (frames.unmasked(table, np.float64) for table in (X, *y))
        options = {"dtype": [np.float64, np.float32], "ensure_all_finite": "allow-nan", **options}
        checked = validate_data(self, X, *y, **options)
        if is_fit:
            self._names = list(getattr(X, "columns", range(self.n_features_in_)))
            self._are_categories = np.isin(range(self.n_features_in_), list(self._categories))
            self._sizes = [len(values) for values in self._categories.values()]
        return checked


def generator(random_state: Any) -> np.random.Generator:
    """Returns a generator for a scikit-learn `random_state`."""
    return np.random.default_rng(check_random_state(random_state).randint(2**31 - 1))
