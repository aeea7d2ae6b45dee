"""Compares estimates of p(y | x) on tables, by `tfr.FlowRegressor` and by other regressions.

* `FlowRegressor`: with its defaults.
* `NGBoost`: `NGBRegressor` of ngboost with its defaults: 500 boosted trees predict the mean and
  variance of a normal distribution from x. `NGBoost, stopped` uses the number of trees, up to 500,
  that is best on a held-out fifth of the rows.
* `trees`: `HistGradientBoostingRegressor` of scikit-learn with its defaults, and normal errors with
  a variance from cross-validation.
* `linear`: linear regression with normal errors of one variance.
* `GP`: `GaussianProcessRegressor` of scikit-learn with an RBF kernel and white noise, on
  standardized columns and at most 2,000 rows.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import time
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.model_selection import cross_val_predict, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import tfp_realnvp as tfr
from benchmarks.tables import data

__all__ = ["REGRESSIONS", "Prediction", "installed_regressions", "measure"]

_COVERAGE = 0.9
_MAX_ROWS_OF_GP = 2_000


class Prediction(NamedTuple):
    """The predictions of a regression for y of new rows.

    Attributes:
      log_probs: log densities of y in its original unit, [N] nats.
      low: lower ends of the 90% intervals, [N].
      high: upper ends, [N].
      mean: predictions of y, [N].
    """

    log_probs: np.ndarray
    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray

    @classmethod
    def normal(cls, mean: np.ndarray, stddev: np.ndarray, y: np.ndarray) -> Prediction:
        """Returns the prediction of a method that predicts normal distributions."""
        normal = stats.norm(mean, stddev)
        return cls(normal.logpdf(y), *normal.interval(_COVERAGE), mean)


def flow_regressor(
    x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, seed: int
) -> Prediction:
    """Learns from x and y, and predicts y_test."""
    regressor = tfr.FlowRegressor(random_state=seed, verbose=0).fit(x, y)
    low, high = regressor.predict_interval(x_test, _COVERAGE)
    log_probs = regressor.score_samples(x_test, y_test)
    return Prediction(log_probs, low, high, regressor.predict(x_test))


def ngboost(
    x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, seed: int, **options: Any
) -> Prediction:
    """Learns from x and y, and predicts y_test, with `options` of `NGBRegressor`."""
    from ngboost import NGBRegressor

    with contextlib.redirect_stdout(None):
        regressor = NGBRegressor(random_state=seed, verbose=False, **options).fit(x, y)
    normal = regressor.pred_dist(x_test)
    return Prediction.normal(normal.params["loc"], normal.params["scale"], y_test)


def trees(
    x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, seed: int
) -> Prediction:
    """Learns from x and y, and predicts y_test."""
    regression = HistGradientBoostingRegressor(random_state=seed)
    errors = y - cross_val_predict(regression, x, y)
    return Prediction.normal(regression.fit(x, y).predict(x_test), errors.std(), y_test)


def linear(
    x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, seed: int
) -> Prediction:
    """Learns from x and y, and predicts y_test."""
    del seed
    regression = LinearRegression().fit(x, y)
    errors = y - regression.predict(x)
    stddev = np.sqrt(np.sum(errors**2) / (len(x) - x.shape[1] - 1))
    return Prediction.normal(regression.predict(x_test), stddev, y_test)


def gaussian_process(
    x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, seed: int
) -> Prediction:
    """Learns from x and y, and predicts y_test."""
    kernel = ConstantKernel() * RBF() + WhiteKernel()
    process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=seed)
    regression = make_pipeline(StandardScaler(), process)
    regression.fit(x[:_MAX_ROWS_OF_GP], y[:_MAX_ROWS_OF_GP])
    mean, stddev = regression.predict(x_test, return_std=True)
    return Prediction.normal(mean, stddev, y_test)


REGRESSIONS = {
    "FlowRegressor": flow_regressor,
    "NGBoost": ngboost,
    "NGBoost, stopped": functools.partial(
        ngboost, validation_fraction=0.2, early_stopping_rounds=20
    ),
    "trees": trees,
    "linear": linear,
    "GP": gaussian_process,
}


def installed_regressions() -> list[str]:
    """Returns the names of the regressions whose package is installed."""
    is_missing = importlib.util.find_spec("ngboost") is None
    return [name for name in REGRESSIONS if not (name.startswith("NGBoost") and is_missing)]


class Measurement(NamedTuple):
    """Scores of a regression on the test rows of one split."""

    log_prob: float
    coverage: float
    r2: float
    seconds: float


def measure(name: str, table: str, seed: int) -> Measurement:
    """Returns the scores of a regression on a table."""
    x, x_test, y, y_test = train_test_split(
        *data.load_regression(table), train_size=0.7, random_state=seed
    )
    start = time.perf_counter()
    prediction = REGRESSIONS[name](x, y, x_test, y_test, seed)
    seconds = time.perf_counter() - start
    is_covered = (y_test >= prediction.low) & (y_test <= prediction.high)
    return Measurement(
        prediction.log_probs.mean(),
        is_covered.mean(),
        r2_score(y_test, prediction.mean),
        seconds,
    )
