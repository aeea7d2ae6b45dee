"""Maps of bounded and periodic columns of a table to the real line."""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import ndtr, ndtri_exp
from scipy.stats import norm, truncnorm

from tfp_realnvp.internal import validation
from tfp_realnvp.tables.frames import position

# Bounds move outwards by this many standard deviations, or by half the rounding width if larger.
_LEAST_MARGIN = 1e-3
# Limits of the standardized mean and of the log scale of a truncated normal distribution.
_LIMITS_OF_FIT = (-100.0, 100.0), (0.0, math.log(10.0))
# `ndtr` of smaller numbers underflows to 0.
_LEAST_QUANTILE = -37.0
_NUM_BINS, _NUM_HARMONICS = 64, 8

# Periodic columns are rounded to this many digits of the period, since adding whole periods to a
# number has rounding errors.
_DIGITS_OF_PERIOD = 9

# Maps positions of columns to bounds (low, high) or a period.
Limits = dict[int, tuple[float, float] | float]


class Interval(NamedTuple):
    """The map of a bounded column to the real line. One bound can be infinite.

    The map is Φ⁻¹(F(x)), where F is the CDF of a truncated normal distribution, fitted by maximum
    likelihood. Far from the bounds the map is nearly affine. The map makes uniform, exponential and
    half normal columns normal.

    The affine map `straight` is better if columns depend on each other linearly.
    """

    low: float
    high: float
    distribution: Any

    @classmethod
    def fit(cls, low: float, high: float, rounding: float, mean: float, stddev: float) -> Interval:
        """Fits the map to a column with this rounding width, mean and standard deviation."""
        margin = max(_LEAST_MARGIN * stddev, rounding / 2)
        ends = np.array([low - margin, high + margin])

        def arguments(parameters: np.ndarray) -> tuple[float, ...]:
            center, wider = mean + stddev * parameters[0], stddev * np.exp(parameters[1])
            return *((ends - center) / wider), center, wider

        def loss(parameters: np.ndarray) -> float:
            return np.exp(-2 * parameters[1]) / 2 - truncnorm.logpdf(mean, *arguments(parameters))

        best = minimize(loss, [0.0, 0.1], method="Nelder-Mead", bounds=_LIMITS_OF_FIT).x
        return cls(low, high, truncnorm(*arguments(best)))

    def straight(self, mean: float, stddev: float) -> Interval:
        """Returns the affine map that standardizes with this mean and standard deviation."""
        return self._replace(distribution=norm(mean, stddev))

    def to_line(self, column: np.ndarray) -> np.ndarray:
        """Maps a column to the real line, after clipping it to the bounds."""
        column = column.clip(self.low, self.high)
        log_cdf, log_rest = self.distribution.logcdf(column), self.distribution.logsf(column)
        return np.where(log_cdf < log_rest, ndtri_exp(log_cdf), -ndtri_exp(log_rest))

    def from_line(self, line: np.ndarray) -> np.ndarray:
        """Inverts `to_line`."""
        tail = ndtr((-abs(line)).clip(_LEAST_QUANTILE))
        column = np.where(line < 0, self.distribution.ppf(tail), self.distribution.isf(tail))
        return column.clip(self.low, self.high)

    def log_slope(self, column: np.ndarray) -> np.ndarray:
        """Returns the log derivative of `to_line`; -inf out of bounds."""
        log_slope = self.distribution.logpdf(column) - norm.logpdf(self.to_line(column))
        return np.where((column < self.low) | (column > self.high), -np.inf, log_slope)


class Circle(NamedTuple):
    """The map of a periodic column to the real line, cut at a seam where rows are rarest.

    Numbers that differ by multiples of the period are the same value. Training uses the number in
    [seam, seam + period). The density is a sum over neighboring periods.
    """

    period: float
    seam: float

    @classmethod
    def fit(cls, period: float, column: np.ndarray, weights: np.ndarray) -> Circle:
        """Places the seam at the minimum of a smoothed histogram."""
        bins = (column % period / period * _NUM_BINS).astype(int) % _NUM_BINS
        harmonics = np.fft.rfft(np.bincount(bins, weights, _NUM_BINS))
        harmonics *= np.exp(-2 * (np.arange(len(harmonics)) / _NUM_HARMONICS) ** 2)
        return cls(period, (np.fft.irfft(harmonics).argmin() + 0.5) / _NUM_BINS * period)

    def to_line(self, column: np.ndarray) -> np.ndarray:
        """Moves numbers by whole periods to [seam, seam + period)."""
        return self.seam + (column - self.seam) % self.period

    def from_line(self, line: np.ndarray) -> np.ndarray:
        """Moves numbers by whole periods to [0, period)."""
        column = line % self.period
        return np.where(column < self.period, column, 0.0)  # -1e-20 % 360 is 360

    def log_slope(self, column: np.ndarray) -> np.ndarray:
        """Returns 0, the log of the derivative of `to_line`."""
        return np.zeros(column.shape)


def wrapped(rows: np.ndarray, limits: Limits) -> np.ndarray:
    """Moves periodic columns of rows [N, D] by whole periods to [0, period).

    The function rounds these columns, so that numbers that differ by whole periods become equal.
    """
    rows = rows.copy()
    for i, period in limits.items():
        if not isinstance(period, tuple):
            digits = _DIGITS_OF_PERIOD - math.floor(math.log10(period))
            rows[:, i] = np.round(rows[:, i] % period, digits) % period
    return rows


def checked_limits(
    bounds: Any, periods: Any, rows: np.ndarray, names: list[Any], categories: Any, caller: str
) -> Limits:
    """Checks and merges `bounds` and `periods`, whose keys are column names or positions."""

    def require(condition: bool, expected: str, value: Any) -> None:
        validation.require(condition, f"{caller}: expected {expected}", value)

    limits: Limits = {}
    for option, values in (("bounds", bounds or {}), ("periods", periods or {})):
        require(isinstance(values, dict), f"{option} as a dictionary by column", values)
        for key, limit in values.items():
            i = position(key, names, option, caller)
            name = f"column {names[i]}"
            require(i not in limits, f"either bounds or a period of {name}", "both")
            require(i not in categories, f"{option} of a numeric column", f"the categorical {name}")
            if option == "periods":
                expected = f"{caller}: expected a positive period of {name}"
                limits[i] = validation.positive(limit, expected)
                continue
            is_pair = isinstance(limit, (tuple, list)) and len(limit) == 2
            is_pair = is_pair and all(isinstance(bound, numbers.Real | None) for bound in limit)
            low, high = limit if is_pair else (0.0, 0.0)
            low, high = -math.inf if low is None else low, math.inf if high is None else high
            require(low < high, f"bounds of {name} as (low, high) or (low, None)", limit)
            outside = rows[:, i][(rows[:, i] < low) | (rows[:, i] > high)]
            require(not outside.size, f"numbers within the bounds of {name}, {limit}", outside[:5])
            limits[i] = float(low), float(high)
    return limits
