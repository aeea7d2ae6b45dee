"""Boosted trees that predict the mean and the scale of one column given others."""

from typing import Any, NamedTuple

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import ThreadpoolController

from tfp_realnvp.tables.table import Rows

_MEAN_OPTIONS = {"max_iter": 100, "max_leaf_nodes": 15}
# Absolute errors carry less information than events, so the trees for the scale are smaller. The
# gamma loss keeps predictions positive.
_SCALE_OPTIONS = {"loss": "gamma", "learning_rate": 0.05, "max_iter": 50, "max_leaf_nodes": 8}
_SCALE_OPTIONS["min_samples_leaf"] = 40
# Absolute errors are clipped to this minimum before trees learn the scale; events have variance 1.
_LEAST_SCALE = 1e-3
# The correction for averaging over folds multiplies variances by at least this factor.
_LEAST_VARIANCE_PART = 0.25
# With several OpenMP threads, a fit takes 30 times as long if another process occupies a core.
_ONE_THREAD = ThreadpoolController().wrap(limits=1, user_api="openmp")


class BoostedTrees(NamedTuple):
    """Trees that predict the mean and the scale of an event given conditions.

    Attributes:
      means: for each fold, trees that predict the mean, fitted to the other folds.
      scales: for each fold, trees that predict the absolute error of `means`.
    """

    means: list[HistGradientBoostingRegressor]
    scales: list[HistGradientBoostingRegressor]

    @_ONE_THREAD
    def predictions(self, conditions: np.ndarray) -> np.ndarray:
        """Predicts mean and log scale, [N, 2], of events given conditions [N, C]."""
        means, scales = np.array([[trees.predict(conditions) for trees in fits] for fits in self])
        scale = scales.mean(axis=0)
        # Averaging predictions over folds reduces the squared error by their variance over folds.
        # For normal errors, the squared error is π/2 times the squared mean absolute error.
        part = 1 - means.var(axis=0) / (np.pi / 2 * scale**2)
        log_scale = np.log(scale) + np.log(part.clip(min=_LEAST_VARIANCE_PART)) / 2
        return np.column_stack([means.mean(axis=0), log_scale])


@_ONE_THREAD
def fit_boosted_trees(
    rows: Rows, folds: np.ndarray, width: float
) -> tuple[BoostedTrees, np.ndarray]:
    """Fits trees that predict the last column; also returns their predictions for rows, [N, 2].

    The predictions for a row, mean and log scale, come from trees that were fitted without the fold
    of the row. `width` is the rounding width of the last column.
    """
    conditions, events = rows.values[:, :-1], rows.values[:, -1]
    weights = rows.weights / rows.weights.mean()

    def fit(targets: np.ndarray, options: dict[str, Any]) -> tuple[list[Any], np.ndarray]:
        fits, predicted = [], np.empty(len(targets))
        for i in range(folds.max() + 1):
            is_learned = folds != i
            trees = HistGradientBoostingRegressor(early_stopping=False, random_state=0, **options)
            trees.fit(conditions[is_learned], targets[is_learned], weights[is_learned])
            predicted[~is_learned] = trees.predict(conditions[~is_learned])
            fits.append(trees)
        return fits, predicted

    means, mean = fit(events, _MEAN_OPTIONS)
    scales, scale = fit(abs(events - mean).clip(min=_LEAST_SCALE + width / 4), _SCALE_OPTIONS)
    return BoostedTrees(means, scales), np.column_stack([mean, np.log(scale)])


class GivenTrees(NamedTuple):
    """A conditional density of one event; the first two conditions are predictions of trees.

    Attributes:
      density: density of the standardized error, (event - predicted mean) / predicted scale.
      num_conditions: number of leading conditions that `density` depends on.
    """

    density: Any
    num_conditions: int

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Converts rows to the conditions and standardized errors that `density` takes."""
        errors = (rows[:, -1] - rows[:, 0]) / np.exp(rows[:, 1])
        return np.column_stack([rows[:, : self.num_conditions], errors])

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        """Returns the log density of the events of rows given their conditions, [N]."""
        return self.density.log_prob(self.rows(rows)) - rows[:, 1]

    def tails(self, rows: np.ndarray) -> np.ndarray:
        """Returns the CDF and the survival function at one-dimensional events, [2, N]."""
        return self.density.tails(self.rows(rows))

    def mean_of_events(self, conditions: np.ndarray) -> np.ndarray:
        """Returns the mean of events given conditions, [N, 1]."""
        errors = self.density.mean_of_events(conditions[:, : self.num_conditions])
        return conditions[:, :1] + np.exp(conditions[:, 1:2]) * errors

    def sample(self, conditions: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """Returns events [N, 1] given conditions [N, C] from uniform numbers [N, 2]."""
        errors = self.density.sample(conditions[:, : self.num_conditions], uniforms)
        return conditions[:, :1] + np.exp(conditions[:, 1:2]) * errors
