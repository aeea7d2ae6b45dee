"""Checks of arguments. The errors state the expected and the actual value."""

import difflib
import inspect
import numbers
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf


def require(condition: bool, expected: str, value: Any, error: type = ValueError) -> None:
    """Raises `error` with "`expected`, got `value`." if the condition is false."""
    if not condition:
        raise error(f"{expected}, got {value!r}.")


def require_message(condition: bool, message: str) -> None:
    """Raises `ValueError` with a message if the condition is false."""
    if not condition:
        raise ValueError(message)


def real(value: Any, is_valid: Callable[[Any], bool], expected: str) -> Any:
    """Returns a valid Python or NumPy number. `is_valid` must be false for NaN."""
    require(isinstance(value, numbers.Real), expected, value, TypeError)
    if not is_valid(value):
        raise ValueError(f"{expected}, got {value}.")
    return value


def integer(value: Any, at_least: int, expected: str, below: float = np.inf) -> int:
    """Returns a whole number in [at_least, below) as an `int`; accepts 4.0."""
    return int(real(value, lambda x: at_least <= x < below and x == int(x), expected))


def fraction(value: Any, expected: str) -> Any:
    """Returns a number in [0, 1)."""
    return real(value, lambda x: 0 <= x < 1, expected)


def count(value: Any, name: str, at_least: int, caller: str) -> int:
    """Returns the argument `name` of `caller` as an `int` of at least `at_least`."""
    return integer(value, at_least, f"{caller}: expected {name} of at least {at_least}")


def known_keywords(cls: type, options: Iterable[str]) -> None:
    """Raises `TypeError` for keyword arguments that the constructor of a class does not take."""
    _, *parameters = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
    if all(parameter.kind != parameter.VAR_KEYWORD for parameter in parameters):
        known_options(options, [parameter.name for parameter in parameters], cls.__name__)


def known_options(options: Iterable[str], names: Sequence[str], caller: str) -> None:
    """Raises `TypeError` if `options` contains a name that is not in `names`."""
    for option in sorted({*options} - {*names}):
        similar = difflib.get_close_matches(option, names, 1, 0.7)
        advice = f", did you mean {similar[0]!r}?" if similar else "."
        raise TypeError(
            f"{caller} got an unexpected keyword argument {option!r}{advice} "
            f"It takes {', '.join(names)}."
        )


def only(value: Any, name: str, applies: bool, when: str, caller: str) -> None:
    """Raises `ValueError` if an option has a value but does not apply."""
    require(applies or value is None, f"{caller}: expected {name} only {when}", value)


def rounding(largest: Any, dtype: Any) -> Any:
    """Returns the standard deviation below which values are constant but for rounding.

    `largest` is the largest absolute value, or the mean. The result is 32 units in the last place.
    """
    return 32 * np.finfo(tf.as_dtype(dtype).as_numpy_dtype).eps * abs(largest)


def columns_apart(
    rows: np.ndarray, dtype: tf.DType, caller: str, stacklevel: int | None = None
) -> None:
    """Raises `ValueError` if float32 cannot resolve the values of a column of `rows`, [N, D].

    With a `stacklevel`, issues a warning instead.
    """
    if dtype == tf.float64 or not len(rows):
        return
    largest, stddev = np.abs(rows).max(axis=0), rows.std(axis=0, dtype=np.float64)
    is_close = (stddev <= rounding(largest, dtype)) & (rows.min(axis=0) < rows.max(axis=0))
    columns = np.flatnonzero(is_close)
    if columns.size:
        first = columns[0]
        message = (
            f"{caller}: expected columns whose values float32 can tell apart, got a standard "
            f"deviation of {stddev[first]:g} and values up to {largest[first]:g} in column {first}"
            f"{f', one of {len(columns)} such columns' if columns.size > 1 else ''}; subtract "
            "their means first, or construct bijectors and base distribution with "
            "`dtype=tf.float64`."
        )
        if stacklevel is None:
            raise ValueError(message)
        warnings.warn(message, stacklevel=stacklevel + 1)


def positive(value: Any, expected: str, dtype: Any = tf.float32) -> Any:
    """Returns a number that is positive and finite in `dtype`; 1e-50 is 0 in float32."""
    limits = np.finfo(tf.as_dtype(dtype).as_numpy_dtype)
    return real(value, lambda x: float(limits.tiny) <= x <= float(limits.max), expected)


def flag(value: Any, expected: str) -> bool:
    """Returns a `bool`. Raises `TypeError` for other truthy or falsy objects."""
    require(isinstance(value, (bool, np.bool_)), expected, value, TypeError)
    return bool(value)


def choice(value: Any, choices: Sequence[str | None], expected: str) -> Any:
    """Returns one of `choices`."""
    require(value in choices, f"{expected}, one of {tuple(choices)}", value)
    return value


def float_dtype(dtype: Any, caller: str) -> tf.DType:
    """Returns `tf.float32` or `tf.float64`."""
    dtype = tf.as_dtype(dtype)
    if dtype not in (tf.float32, tf.float64):
        raise TypeError(f"{caller}: expected dtype float32 or float64, got {dtype.name}.")
    return dtype


def warn_unless_finite(values: Any, caller: str) -> None:
    """Issues a `RuntimeWarning` if a log density is not finite.

    An error in place of the warning would stop the validation in `fit` because of a single image.
    """
    if number := np.count_nonzero(~np.isfinite(values)):
        warnings.warn(
            f"{caller}: expected finite log densities, got {number} of {np.size(values)} "
            "that are not; validate_args=True in the bijector shows where, and "
            "evaluation.bits_per_dim shows for which image.",
            RuntimeWarning,
            stacklevel=3,
        )
