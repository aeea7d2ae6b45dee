"""Arguments of the table estimators: defaults, checks, and the values that replace `None`."""

import dataclasses
import math
from typing import Any, ClassVar

import keras

from tfp_realnvp.flows import coupling_layer, network_of
from tfp_realnvp.internal import validation

# Pairs of defaults: for fewer rows, and for at least this many rows. Many rows get only one, larger
# flow: a held-out tenth of the rows suffices for early stopping and for the mixture weights.
_MIN_MANY_ROWS = 50_000
_DEFAULTS = {"num_flows": (5, 1), "num_filters": (32, 64)}
_DEFAULTS |= {"max_steps": (2_000, 6_000), "batch_size": (128, 512)}
_LEAST_COUNTS = dict.fromkeys(("num_couplings", "num_filters", "patience", "batch_size"), 1)
_LEAST_COUNTS |= dict.fromkeys(("num_flows", "num_blocks", "max_steps"), 0)


@dataclasses.dataclass(eq=False, repr=False)
class Options:
    """The arguments of `FlowDensity` and `FlowRegressor`; `fit` checks them.

    `FlowDensity` models the columns of X, and `FlowRegressor` models the columns of y.

    Args:
      num_flows: number of flows and of folds. Each flow holds out one fold; a single flow holds
        out a tenth of the rows. 0 turns flows off and keeps the default number of folds. Defaults
        to 5, or to 1 from 50,000 rows on.
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
      noise: standard deviation of the noise in the training of flows, in standard deviations of
        each column. With `None` the noise decreases from 0.3 to 0.01, and early stopping selects
        the noise. In `FlowDensity` a number is also the minimum standard deviation of normal
        distributions, which prevents narrow peaks.
      dequantize: whether training adds noise to coarsely rounded columns. A column is coarsely
        rounded if at least 3/4 of its distinct values are multiples of a step 1, 0.5, 0.1,
        0.05, ..., 1e-8, 5e-9, and the step is at least a tenth of the column's standard
        deviation. The step is the width of the noise.
      bounds: limits of columns of X, by name or position, as in `{"price": (0, None)}`; `None`
        means no limit. Limits are inclusive. Numbers out of bounds raise an error in `fit`.
        Later, `FlowDensity` gives them density 0, and `FlowRegressor` clips them. In
        `FlowRegressor`, `"y"` also names y, or `"y[:, 1]"` the second of several y, unless X has a
        column of this name; y out of bounds have density 0.
      periods: periods of columns of X, as in `{"wind": 360}` for directions in degrees.
      categorical_features: names or positions of the columns of X that are categories. By
        default, all columns of a `DataFrame` that are categories, strings, objects or bools.
      max_steps: largest number of training steps of each flow; by default 2,000, or 6,000 from
        50,000 rows on. 0 turns flows off.
      patience: number of validations without improvement after which training stops.
        Validations are `max(50, max_steps // 40)` steps apart. The flow keeps the weights of
        the best validation, or its initial weights if these are at most one standard error worse.
      learning_rate: peak learning rate of Adam, after a warm-up and before cosine annealing.
      batch_size: rows per training step, drawn with replacement; by default 128, or 512 from
        50,000 rows on.
      random_state: as in scikit-learn: an integer gives reproducible results.
      verbose: 1 prints progress, 0 nothing, and `'auto'` a few lines if `fit` takes longer than
        5 s.
    """

    # If false, scores average the density over the rounding interval of a single column.
    _is_density: ClassVar[bool]
    num_flows: int | None = None
    _: dataclasses.KW_ONLY
    num_couplings: int | None = None
    num_blocks: int = 1
    num_filters: int | None = None
    transformer: Any = None
    degrees_of_freedom: float = 8.0
    noise: float | None = None
    dequantize: bool = True
    bounds: dict[Any, Any] | None = None
    periods: dict[Any, float] | None = None
    categorical_features: Any = "from_dtype"
    max_steps: int | None = None
    patience: int = 10
    learning_rate: float = 2e-3
    batch_size: int | None = None
    random_state: Any = None
    verbose: int | str = "auto"

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _require(self, condition: Any, expected: str, value: Any) -> None:
        """Raises a `ValueError` that names the estimator if the condition is false."""
        validation.require(bool(condition), f"{self._name}: expected {expected}", value)

    def _check(self) -> None:
        """Raises an error if an argument that does not depend on the data is invalid.

        Tables without flows do not use all arguments, so the check comes first.
        """
        for name, least in _LEAST_COUNTS.items():
            if getattr(self, name) is not None:
                validation.count(getattr(self, name), name, least, self._name)
        if self.transformer is not None:
            coupling_layer(network_of(keras.layers.Dense), transformer=self.transformer)
        if self.verbose != "auto":
            validation.integer(self.verbose, 0, f"{self._name}: expected verbose of 'auto', 0 or 1")
        if self.noise is not None:
            expected = f"{self._name}: expected noise of at least 0, or None"
            validation.real(self.noise, lambda x: 0 <= x < math.inf, expected)
        for name in ("degrees_of_freedom", "learning_rate"):
            validation.positive(getattr(self, name), f"{self._name}: expected a positive {name}")
        validation.flag(self.dequantize, f"{self._name}: expected a bool as dequantize")


# A generated constructor has no docstring of its own.
Options.__init__.__doc__ = Options.__doc__


def resolved(options: Options, num_rows: float, is_one: bool) -> Options:
    """Replaces `None` with defaults that depend on the number of rows and modeled columns."""
    kind = ("affine", "rational_quadratic_spline")[is_one]
    values: dict[str, Any] = {"num_couplings": 2 if is_one else 8, "transformer": kind}
    values |= {name: pair[int(num_rows >= _MIN_MANY_ROWS)] for name, pair in _DEFAULTS.items()}
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Options)}
    if given["num_flows"] == 0:
        given |= {"num_flows": None, "max_steps": 0}
    return Options(**given | {name: values[name] for name in values if given[name] is None})
