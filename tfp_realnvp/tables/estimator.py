"""What the estimators of tables share: arguments, checks of rows, and results of a fit."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state

from tfp_realnvp.internal import data_frames, private_api, validation
from tfp_realnvp.tables.columns import Columns
from tfp_realnvp.tables.flow import TableFlowOptions
from tfp_realnvp.tables.stack import StackFit, StackOptions
from tfp_realnvp.tables.weighted_rows import Rows

__all__ = ["TableEstimator", "generator"]

_NUM_COUPLINGS, _NUM_COUPLINGS_OF_ONE = 8, 2


class TableEstimator(BaseEstimator):
    """Base of `FlowDensity` and `FlowRegressor`."""

    _takes_labels = False

    def __init__(
        self,
        num_flows: int = 5,
        *,
        num_couplings: int | None = None,
        num_blocks: int = 1,
        num_filters: int = 32,
        transformer: Any = None,
        degrees_of_freedom: float = 8.0,
        noise: float | None = None,
        dequantize: bool = True,
        max_steps: int = 2_000,
        patience: int = 10,
        learning_rate: float = 2e-3,
        batch_size: int = 128,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        """Constructs the estimator; `fit` checks the arguments.

        The modeled columns are X in `FlowDensity`, and y in `FlowRegressor`.

        Args:
          num_flows: parts of the rows, and flows, each of which holds out another part; at least 2.
          num_couplings: couplings of a flow, as in `RealNVPVector`; by default 8, or 2 for a single
            modeled column.
          num_blocks: residual blocks of each network.
          num_filters: units of each layer of the networks.
          transformer: transformer of the couplings, as in `RealNVPVector`; by default `'affine'`,
            or `'rational_quadratic_spline'` for a single modeled column, which affine maps only
            move and scale.
          degrees_of_freedom: of the Student t distributions. A row far from all others is then not
            impossible.
          noise: standard deviation of the noise in training, for columns of variance 1. With `None`
            it falls from 0.3 to 0.01, and early stopping chooses.
          dequantize: whether rounded columns get noise in training. A column counts as rounded if
            three quarters of its distinct values are multiples of a step: 1, 0.5, 0.1, 0.05, ...,
            1e-8, 5e-9. The step, the width of the noise, has to be at least a tenth of the column's
            standard deviation.
          max_steps: largest number of training steps of each flow.
          patience: number of validations without improvement, one each 50 steps, after which the
            training of a flow ends. The weights of the best validation are kept, or the weights at
            the start if the best validation is not better by a standard error.
          learning_rate: learning rate of Adam, at the start of its cosine annealing.
          batch_size: rows in a training step, which are drawn with replacement.
          random_state: as in scikit-learn: an integer gives reproducible results.
          verbose: 1 prints the progress of the flows, with the time that is left at most.
        """
        self.num_flows = num_flows
        self.num_couplings = num_couplings
        self.num_blocks = num_blocks
        self.num_filters = num_filters
        self.transformer = transformer
        self.degrees_of_freedom = degrees_of_freedom
        self.noise = noise
        self.dequantize = dequantize
        self.max_steps = max_steps
        self.patience = patience
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.random_state = random_state
        self.verbose = verbose

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _check_arguments(self) -> None:
        for name, least in (("num_flows", 2), ("max_steps", 1), ("patience", 1), ("batch_size", 1)):
            value = getattr(self, name)
            validation.integer(value, least, f"{self._name}: expected {name} of at least {least}")
        if self.noise is not None:
            expected = f"{self._name}: expected noise of at least 0, or None"
            validation.finite(self.noise, 0, expected)
        for name in ("degrees_of_freedom", "learning_rate"):
            validation.positive(getattr(self, name), f"{self._name}: expected a positive {name}")
        validation.flag(self.dequantize, f"{self._name}: expected a bool as dequantize")

    def _fit_or_keep(self, *arguments: Any) -> Any:
        """Returns the estimator after `_fit`; an error or an interrupt leaves it as it was.

        `_fit` sets the attributes of a copy, which the estimator gets at once when all are there.
        """
        fitted = copy.copy(self)
        fitted._fit(*arguments)
        self.__dict__ = fitted.__dict__
        return self

    def _fit(self, *arguments: Any) -> None:
        """Sets the attributes of a fit."""
        raise NotImplementedError

    def _validated(self, X: Any, *y: Any, **options: Any) -> Any:
        """Returns X, or X and y, float32 or float64, by the checks of scikit-learn."""
        data_frames.check_columns(X, self._name, self._takes_labels)
        X, *y = (
            np.ma.filled(table.astype(np.float64), np.nan) if np.ma.isMaskedArray(table) else table
            for table in (X, *y)
        )
        try:
            return private_api.validate_data(self, X, *y, dtype=[np.float64, np.float32], **options)
        except ValueError as error:
            if "Input X contains NaN" not in str(error):
                raise
            raise ValueError(
                f"{self._name}: expected rows without missing values, got NaN. Input X contains "
                "NaN. Fit a FlowDensity to the rows that are complete; its `impute` draws what is "
                "missing in others, as tfr.latents.complete does for any flow."
            ) from error

    def _stack_options(self, modeled: Columns) -> StackOptions:
        """Returns options of stacks of the modeled columns."""
        values = {name: getattr(self, name) for name in TableFlowOptions._fields}
        is_one = len(modeled.scale) == 1
        if values["num_couplings"] is None:
            values["num_couplings"] = _NUM_COUPLINGS_OF_ONE if is_one else _NUM_COUPLINGS
        if values["transformer"] is None:
            values["transformer"] = "rational_quadratic_spline" if is_one else "affine"
        return StackOptions(
            self.num_flows,
            self.degrees_of_freedom,
            modeled.standardized_widths(),
            modeled.least_variances(),
            TableFlowOptions(**values),
        )

    def _set_results(self, fits: list[StackFit], modeled: Columns) -> None:
        """Sets the attributes that say what flows gained."""
        self.rounding_widths_ = modeled.widths
        self.history_ = [history for fit in fits for history in fit.history]
        self.n_steps_ = np.array([each["kept_step"] for each in self.history_], int)
        self.noise_ = np.array([each["kept_noise"] for each in self.history_], float)
        held_out = Rows(*(np.concatenate([fit.held_out[i] for fit in fits]) for i in range(2)))
        start, end = np.concatenate([fit.log_probs for fit in fits]).T + modeled.log_det
        (self.score_start_, _), (self.score_held_out_, _), self.flow_gain_ = (
            held_out.mean_and_error(values) for values in (start, end, end - start)
        )


def generator(random_state: Any) -> np.random.Generator:
    """Returns a generator from what scikit-learn takes as `random_state`."""
    return np.random.default_rng(check_random_state(random_state).randint(2**31 - 1))
