"""Distinct rows of a table with weights, and the scales and rounding of its columns.

Equal rows become one row of their total weight. Results thus do not depend on the order of the
rows, and a repeated row counts like a row of larger weight.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfp_realnvp.internal import validation
from tfp_realnvp.tables.domains import Circle, Interval, Limits
from tfp_realnvp.tables.frames import listed

_LEAST_VARIANCE = 1e-6
# Rounding is coarse if the rounding width is at least this many standard deviations.
_COARSE_ROUNDING = 0.1
# A column counts as rounded if this fraction of its distinct values has few decimals.
_ROUNDED_PART, _MAX_DECIMALS = 0.75, 9
# A column takes few values if this fraction of its rows has values that occur in this many rows.
_DISCRETE_PART, _DISCRETE_ROWS = 0.9, 5
# The map of a bounded column is selected on at most this many rows.
_MAX_ROWS_OF_CHOICE = 2_000
_MAX_ROWS_ADDED, _DIGITS_OF_WEIGHTS = 10_000, 9
# The squares of larger numbers can overflow float64.
_MAX_MAGNITUDE = 1e150
# Smaller standard deviations, relative to the largest absolute value, consist of rounding errors.
_LEAST_SPREAD = 1e-12
# The warning points to the caller of `fit`, above the frames of `fit`, `_fit_or_keep`, `_fit`,
# `_fit_simple_densities` and `warn`.
_STACK_LEVEL = 6


def check_spreads(rows: np.ndarray, names: Sequence[Any], caller: str) -> None:
    """Raises `ValueError` if a column varies by less than float64 resolves at its magnitude.

    Args:
      rows: [N, D], before the map to the real line; NaN marks missing cells.
      names: of the D columns.
      caller: the name of the estimator in the message.
    """
    for column, name in zip(rows.T, names, strict=True):
        known = column[~np.isnan(column)].astype(np.float64)
        largest = abs(known).max(initial=0.0)
        # Squares of the values themselves can overflow.
        spread = (known / largest).std() if largest > 0 else 0.0
        if 0 < spread <= _LEAST_SPREAD and known.min() < known.max():
            raise ValueError(
                f"{caller}: expected columns whose values float64 can tell apart, got a standard "
                f"deviation of {spread * largest:g} and values up to {largest:g} in column {name}. "
                "Subtract a number from the column, such as its minimum, before it becomes float; "
                "leave out identifiers and columns that are constant but for rounding."
            )


def one_hot(codes: np.ndarray, sizes: list[int]) -> np.ndarray:
    """One-hot encodes codes [N, C] as indicators [N, Σ sizes]; column i has `sizes[i]` categories.

    All indicators of a missing cell are NaN.
    """
    codes = np.repeat(codes, np.array(sizes, int), axis=1)
    return np.where(np.isnan(codes), np.nan, codes == [i for size in sizes for i in range(size)])


def codes_of(indicators: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Decodes indicators [..., Σ sizes] to codes [..., C]."""
    columns = split_categories(indicators, sizes)
    codes = [column.argmax(axis=-1, keepdims=True) for column in columns]
    return np.concatenate([indicators[..., :0], *codes], axis=-1)


def split_categories(indicators: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    """Splits indicators [..., H] by column."""
    return np.split(indicators, np.cumsum(sizes), axis=-1)[: len(sizes)]


def drawn(weights: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Samples an index per row of weights [N, K] by inverting the CDF at uniform numbers [N]."""
    ends = weights.cumsum(axis=1)
    return (uniforms[:, np.newaxis] * ends[:, -1:] > ends[:, :-1]).sum(axis=1)


class Rows(NamedTuple):
    """Distinct rows [N, D] with positive weights [N]."""

    values: np.ndarray
    weights: np.ndarray

    @classmethod
    def merged(cls, values: np.ndarray, weights: np.ndarray) -> Rows:
        """Merges equal rows, adds up their weights, drops weight 0, and sorts the rows.

        The largest weight becomes 1. Weights are rounded to nine digits, so that the result does
        not depend on the scale of the weights or on rounding errors of their sums.
        """
        is_used = weights > 0
        values = values[is_used] + 0.0  # -0.0 becomes 0.0
        # NaN, a missing cell, does not equal itself.
        values = np.where(np.isnan(values), np.inf, values)
        values, indices = np.unique(values, axis=0, return_inverse=True)
        values = np.where(np.isinf(values), np.nan, values)
        weights = np.bincount(indices.ravel(), weights[is_used])
        mantissas, exponents = np.frexp(weights / weights.max())
        return cls(values, np.ldexp(np.round(mantissas, _DIGITS_OF_WEIGHTS), exponents))

    @classmethod
    def concatenated(cls, parts: Iterable[Rows]) -> Rows:
        """Concatenates tables."""
        return cls(*map(np.concatenate, zip(*parts, strict=True)))

    def where(self, chosen: Any) -> Rows:
        """Selects rows by a mask, indices or a slice."""
        return Rows(self.values[chosen], self.weights[chosen])

    def thinned(self, number: int) -> Rows:
        """Returns every n-th row, at most `number` rows, spread evenly over the sorted table."""
        return self.where(slice(None, None, -(-len(self.weights) // number)))

    def repeated(self) -> Rows:
        """Splits heavy rows that have missing cells into lighter copies, for multiple imputations.

        Each copy gets about the weight of the lightest row. At most 10,000 copies are added.
        """
        least = max(self.weights.min(), self.weights.sum() / _MAX_ROWS_ADDED)
        has_gaps = np.isnan(self.values).any(axis=1)
        copies = np.ceil(np.round(self.weights / least, _DIGITS_OF_WEIGHTS - 3))
        copies = np.where(has_gaps, copies, 1).astype(int)
        lighter = self._replace(weights=self.weights / copies)
        return lighter.where(np.repeat(np.arange(len(copies)), copies))

    def mapped(self, function: Callable[[np.ndarray], np.ndarray]) -> Rows:
        """Applies a function to the rows and keeps the weights."""
        return self._replace(values=function(self.values))

    @property
    def number(self) -> float:
        """Kish's effective number of rows, at most N.

        Source: Kish: Survey sampling, 1965, section 11.7.
        """
        return self.weights.sum() ** 2 / (self.weights**2).sum()

    def mean(self, values: np.ndarray) -> Any:
        """Returns the weighted mean of one value per row, or of arrays [N, ...]."""
        return np.average(values, axis=0, weights=self.weights)

    def mean_and_error(self, values: np.ndarray) -> tuple[float, float]:
        """Returns the weighted mean of one value per row, and its standard error."""
        mean = self.mean(values)
        return float(mean), float(np.sqrt(self.mean((values - mean) ** 2) / self.number))

    def covariance(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the mean [D] and the covariance [D, D] of the rows."""
        mean = self.mean(self.values)
        shifted = self.values - mean
        return mean, (self.weights * shifted.T) @ shifted / self.weights.sum()

    def draw(self, shape: list[int], rng: np.random.Generator) -> np.ndarray:
        """Samples rows [*shape, D] with replacement, in proportion to their weights."""
        ends = np.cumsum(self.weights)
        return self.values[np.searchsorted(ends, ends[-1] * rng.random(shape), side="right")]

    def with_known_cells(self, rng: np.random.Generator) -> Rows:
        """Fills missing cells with random known cells of their column, or 0 if it has none."""
        values = self.values.copy()
        for column in values.T:
            is_missing = np.isnan(column)
            if is_missing.any() and not is_missing.all():
                known = Rows(column[~is_missing], self.weights[~is_missing])
                column[is_missing] = known.draw([is_missing.sum()], rng)
        return self._replace(values=np.nan_to_num(values))

    def folds(self, number: int, rng: np.random.Generator) -> np.ndarray:
        """Assigns each row to one of min(number, N) folds, [N].

        Heavy rows are assigned first, which distributes them evenly over the folds.
        """
        order = rng.permutation(len(self.weights))
        order = order[np.argsort(-self.weights[order], kind="stable")]
        folds = np.empty(len(order), int)
        folds[order] = np.arange(len(order)) % number
        return folds


def checked_weights(weights: Any, number: int, caller: str) -> np.ndarray:
    """Returns checked weights [number], nonnegative float64; `None` means ones."""
    weights = np.ones(number) if weights is None else np.asarray(weights, np.float64)
    expected = f"{caller}: expected sample_weight of {number} nonnegative numbers, one for each row"
    validation.require(weights.shape == (number,), expected, weights.shape)
    is_valid = np.isfinite(weights).all() and weights.min() >= 0 and weights.any()
    validation.require(bool(is_valid), f"{expected}, not all of them zero", weights)
    return weights


# Pairs of training rows and held-out rows.
Splits = Sequence[tuple[Rows, Rows]]


class Columns(NamedTuple):
    """Properties of the columns of a table; arrays have the shape [D].

    Attributes:
      center: means of the columns after the map to the real line; for constant columns, the value.
      scale: standard deviations of the mapped columns with rounding noise; for constant columns,
        the magnitude.
      is_constant: whether all rows have the same value.
      widths: rounding widths of coarsely rounded columns in their original units, 0 for others.
      few_values: the values of coarsely rounded columns that take few values, by position.
      slopes: geometric means of the derivative of `standardized` over the rows.
      domains: the maps of bounded and periodic columns to the real line, by position.
      sizes: numbers of categories, if the columns are indicators of categories.
    """

    center: np.ndarray
    scale: np.ndarray
    is_constant: np.ndarray
    widths: np.ndarray
    few_values: dict[int, np.ndarray]
    slopes: np.ndarray
    domains: dict[int, Interval | Circle]
    sizes: list[int] | None = None

    @classmethod
    def of(cls, rows: Rows, dequantize: bool, caller: str, limits: Limits, grid: bool) -> Columns:
        """Computes the properties of the columns of `rows`; without `dequantize`, widths are 0.

        `limits` maps positions of columns to bounds `(low, high)` or periods. With `grid`, bounded
        columns that are rounded get affine maps to the real line, which preserve the grid.
        """
        values = rows.values
        largest = abs(values).max(axis=0)
        expected = f"{caller}: expected absolute values below {_MAX_MAGNITUDE:g}"
        validation.require(bool((largest < _MAX_MAGNITUDE).all()), expected, largest)
        center, covariance = rows.covariance()
        rounding = np.array([_rounding_width(column) for column in values.T])
        widths = dequantize * rounding
        scale = np.sqrt(np.diag(covariance) + widths**2 / 12)
        scale = np.where(
            scale > _LEAST_SPREAD * largest, scale, np.where(largest > 0, largest, 1.0)
        )
        is_constant = (values == values[:1]).all(axis=0)
        is_coarse = rounding >= _COARSE_ROUNDING * scale
        center = np.where(is_constant, values[0], center)
        widths *= is_coarse
        is_shared = np.array([_are_values_shared(column) for column in values.T], bool)
        few = {int(i): np.unique(values[:, i]) for i in np.flatnonzero(is_coarse & is_shared)}
        columns = cls(center, scale, is_constant, widths, few, 1 / scale, {})
        for i, limit in limits.items():
            if isinstance(limit, tuple):
                domain: Any = Interval.fit(*limit, rounding[i] * is_coarse[i], center[i], scale[i])
            else:
                domain = Circle.fit(limit, values[:, i], rows.weights)
            columns = columns._mapped(i, domain, rows)
        some = rows.thinned(_MAX_ROWS_OF_CHOICE)
        for i, domain in columns.domains.items():
            if isinstance(domain, Interval):
                straight = columns._mapped(i, domain.straight(center[i], scale[i]), rows)
                # In a column of few values, a curved map would change the heights of the peaks.
                choices = [straight] if i in few or (grid and widths[i]) else [columns, straight]
                columns = max(choices, key=lambda each: each._normal_score(some))
        return columns

    def _mapped(self, i: int, domain: Interval | Circle, rows: Rows) -> Columns:
        """Returns the properties after `domain` maps column i to the real line."""
        line = domain.to_line(rows.values[:, i])
        center, scale, slopes = self.center.copy(), self.scale.copy(), self.slopes.copy()
        center[i], log_slope = rows.mean(line), rows.mean(domain.log_slope(rows.values[:, i]))
        variance = rows.mean((line - center[i]) ** 2)
        scale[i] = np.sqrt(variance + (np.exp(log_slope) * self.widths[i]) ** 2 / 12) or 1.0
        slopes[i] = np.exp(log_slope) / scale[i]
        domains = self.domains | {i: domain}
        return self._replace(center=center, scale=scale, slopes=slopes, domains=domains)

    def _normal_score(self, rows: Rows) -> float:
        """Returns the mean log density of rows under a normal distribution, up to a constant."""
        _, covariance = rows.mapped(self.standardized).covariance()
        np.fill_diagonal(covariance, 1 + _LEAST_VARIANCE)
        log_slope = rows.mean(self.log_slopes(rows.values).sum(axis=1))
        return log_slope - np.linalg.slogdet(covariance)[1] / 2

    def standardized(self, rows: np.ndarray) -> np.ndarray:
        """Standardizes rows [..., D], float64, to mean 0 and variance 1 of each column."""
        rows = rows.astype(np.float64)
        for i, domain in self.domains.items():
            rows[..., i] = domain.to_line(rows[..., i])
        return (rows - self.center) / self.scale

    def snapped(self, rows: np.ndarray) -> np.ndarray:
        """Rounds imputed values to categories, or to known values of columns with few values."""
        if self.sizes is not None:
            return self.standardized(one_hot(codes_of(self.in_units(rows), self.sizes), self.sizes))
        units, few = self.in_units(rows), list(self.few_values)
        for i, values in self.few_values.items():
            middles = (values[1:] + values[:-1]) / 2
            units[:, i] = values[np.searchsorted(middles, units[:, i])]
        rows[:, few] = self.standardized(units)[:, few]
        return rows

    def indicators(self, rows: np.ndarray) -> np.ndarray:
        """Converts the first columns of standardized rows back to indicators of categories."""
        return np.rint(self.in_units(rows[:, : len(self.center)]))

    def in_units(self, rows: np.ndarray) -> np.ndarray:
        """Inverts `standardized`: returns rows [..., D] in their original units."""
        rows = self.center + np.where(self.is_constant, 0.0, self.scale) * rows
        for i, domain in self.domains.items():
            rows[..., i] = domain.from_line(rows[..., i])
        return rows

    def ends(self) -> np.ndarray:
        """Returns the bounds of the columns in their original units, [2, D]."""
        domains = [self.domains.get(i) for i in range(len(self.center))]
        ends = [(getattr(d, "low", -np.inf), getattr(d, "high", np.inf)) for d in domains]
        return np.transpose(ends)

    def on_grid(self, rows: np.ndarray) -> np.ndarray:
        """Rounds coarsely rounded columns of rows in original units to numbers within bounds."""
        is_rounded = self.widths > 0
        per_unit = 1 / np.where(is_rounded, self.widths, 1.0)  # exact, unlike 0.1
        low, high = self.ends() * per_unit
        steps = np.rint(rows * per_unit).clip(np.ceil(low - 1e-6), np.floor(high + 1e-6))
        return np.where(is_rounded, steps / per_unit + 0.0, rows)  # -0.0 becomes 0.0

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Shifts periodic columns of standardized rows [N, D] by -1, 0 and 1 periods, [K, N, D].

        K counts the combinations of shifts. All rows must miss the same cells, which stay NaN.
        """
        rows, turns = rows.copy(), [np.zeros(1)] * rows.shape[1]
        for i, domain in self.domains.items():
            if isinstance(domain, Circle) and not np.isnan(rows[:, i]).any():
                first = domain.to_line(self.center[i] + self.scale[i] * rows[:, i])
                rows[:, i] = (first - self.center[i]) / self.scale[i]
                turns[i] = np.arange(-1, 2) * domain.period / self.scale[i]
        return np.array(list(itertools.product(*turns)))[:, np.newaxis] + rows

    def log_slopes(self, rows: np.ndarray) -> np.ndarray:
        """Returns the log derivatives of `standardized` at rows [N, D] in original units.

        The log derivatives are 0 for missing cells, and -inf out of bounds.
        """
        log_slopes = np.zeros(rows.shape) - np.log(self.scale)
        for i, domain in self.domains.items():
            log_slopes[:, i] += domain.log_slope(rows[:, i])
        return np.where(np.isnan(rows), 0.0, log_slopes)

    def standardized_widths(self) -> np.ndarray:
        """Returns the rounding widths of standardized columns, [D]."""
        return self.widths * self.slopes

    def least_variances(self) -> list[np.ndarray]:
        """Returns one or two minimum variances [D] for normal mixtures of standardized columns.

        The first smooths all rounded columns; the second allows peaks in columns of few values.
        """
        of_rounding = self.standardized_widths() ** 2 / 12
        smooth = _LEAST_VARIANCE + of_rounding
        takes_few_values = np.isin(np.arange(len(smooth)), list(self.few_values))
        sharp = np.where(takes_few_values, _LEAST_VARIANCE * (1 - of_rounding), smooth)
        return [smooth] if (sharp == smooth).all() else [smooth, sharp]

    def warn(self, rows: np.ndarray, names: list[str], caller: str, is_density: bool) -> None:
        """Warns of constant and equal columns; for a density, also of columns of few values."""
        _, first, copies = np.unique(rows, axis=1, return_index=True, return_inverse=True)
        pairs = enumerate(first[copies.ravel()])
        kinds = ["" if i == j else f"equals {names[j]}" for i, j in pairs]
        kinds = np.where(self.is_constant, "constant", kinds)
        notes = [f"{name} ({kind})" for name, kind in zip(names, kinds, strict=True) if kind]
        if notes:
            warnings.warn(
                f"{caller}: some columns carry no information: {listed(notes)}. They add a "
                "constant to log densities that depends only on the regularization. Remove these "
                "columns for comparable densities.",
                stacklevel=_STACK_LEVEL,
            )
        if is_density and self.few_values:
            few = listed(names[i] for i in self.few_values)
            warnings.warn(
                f"{caller}: some columns are rounded and take few values: {few}. score_samples is "
                "the height of narrow peaks at these values, not their probability; see the "
                "docstring. For probabilities of one column, pass it as y to a FlowRegressor.",
                stacklevel=_STACK_LEVEL,
            )


def _rounding_width(column: np.ndarray) -> float:
    """Returns the largest step that divides at least 3/4 of a column's distinct values, else 0.

    Steps are powers of ten and their halves. Each value counts once: frequent exact zeros, such as
    hours without rain, do not show how other values are rounded.
    """
    values = np.unique(column)
    with np.errstate(over="ignore", invalid="ignore"):
        # A number like 0.1 that was stored as float32 has few decimals only in float32.
        short = values.astype(np.float32)
        values = short if (short == values).all() else values
        for number, parts in itertools.product(range(_MAX_DECIMALS), (1, 2)):
            if (np.round(parts * values, number) == parts * values).mean() >= _ROUNDED_PART:
                return 10.0**-number / parts
    return 0.0


def _are_values_shared(column: np.ndarray) -> bool:
    """Returns whether most rows have frequent values, not counting the most frequent value."""
    counts = np.sort(np.unique(column, return_counts=True)[1])[:-1]
    return counts[counts >= _DISCRETE_ROWS].sum() >= _DISCRETE_PART * max(counts.sum(), 1)
