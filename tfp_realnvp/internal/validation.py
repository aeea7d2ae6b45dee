"""Argument checks, whose errors say what was expected and what came."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = [
    "choice",
    "columns_apart",
    "count",
    "finite",
    "flag",
    "float_dtype",
    "int32",
    "integer",
    "momentum",
    "positive",
    "real",
    "require",
]


def require(condition: bool, expected: str, value: Any, error: type = ValueError) -> None:
    """Raises `error` with "`expected`, got `value`." unless the condition holds."""
    if not condition:
        raise error(f"{expected}, got {value!r}.")


def real(value: Any, is_valid: Callable[[Any], bool], expected: str) -> Any:
    """Returns a Python or NumPy number that passes `is_valid`, which NaN must fail."""
    require(isinstance(value, numbers.Real), expected, value, TypeError)
    if not is_valid(value):
        raise ValueError(f"{expected}, got {value}.")
    return value


def integer(value: Any, at_least: int, expected: str) -> int:
    """Returns a whole number of at least `at_least` as an `int`; 4.0 counts as 4."""
    whole = real(value, lambda x: at_least <= x < float("inf") and x == int(x), expected)
    return int(whole)


def count(value: Any, name: str, at_least: int, caller: str) -> int:
    """Returns the argument `name` of `caller`, a whole number of at least `at_least`."""
    return integer(value, at_least, f"{caller}: expected {name} of at least {at_least}")


def only(value: Any, name: str, applies: bool, when: str, caller: str) -> None:
    """Raises `ValueError` if an option is given, not `None`, and has no effect."""
    require(applies or value is None, f"{caller}: expected {name} only {when}", value)


def int32(value: Any, expected: str) -> int:
    """Returns a whole number that fits into 32 bits as an `int`."""
    bound = 2**31
    return int(real(value, lambda x: -bound <= x < bound and x == int(x), expected))


def columns_apart(rows: np.ndarray, dtype: tf.DType, caller: str) -> None:
    """Raises `ValueError` if float32 cannot tell the values of a column of [N, D] apart.

    A column that is not constant needs 16 numbers of float32 within its standard deviation.
    """
    if dtype == tf.float64:
        return
    largest, stddev = np.abs(rows).max(axis=0), rows.std(axis=0, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        is_apart = stddev >= 16 * np.spacing(largest.astype(np.float32))
    columns = np.flatnonzero(~is_apart & (rows.min(axis=0) < rows.max(axis=0)))
    if columns.size:
        first = columns[0]
        raise ValueError(
            f"{caller}: expected columns whose values float32 can tell apart, got a standard "
            f"deviation of {stddev[first]:g} and values up to {largest[first]:g} in column {first}"
            f"{f', one of {len(columns)} such columns' if columns.size > 1 else ''}; subtract "
            "their means before, or construct bijectors and base distribution with "
            "`dtype=tf.float64`."
        )


def finite(value: Any, at_least: float, expected: str) -> Any:
    """Returns a number of at least `at_least` that is finite in float32."""
    return real(value, lambda x: at_least <= x <= float(np.finfo(np.float32).max), expected)


def positive(value: Any, expected: str, dtype: Any = tf.float32) -> Any:
    """Returns a number that is positive and finite in `dtype`: 1e-50 is 0 in float32."""
    limits = np.finfo(tf.as_dtype(dtype).as_numpy_dtype)
    return real(value, lambda x: float(limits.tiny) <= x <= float(limits.max), expected)


def momentum(value: Any, caller: str) -> Any:
    """Returns the momentum of moving statistics, in [0, 1)."""
    return real(value, lambda x: 0 <= x < 1, f"{caller}: expected a momentum in [0, 1)")


def flag(value: Any, expected: str) -> bool:
    """Returns a `bool`. Other objects would silently count as true or false."""
    require(isinstance(value, (bool, np.bool_)), expected, value, TypeError)
    return bool(value)


def choice(value: Any, choices: Sequence[str | None], expected: str) -> str | None:
    """Returns one of `choices`."""
    is_word = isinstance(value, str) or value is None
    require(is_word and value in choices, f"{expected}, one of {tuple(choices)}", value)
    return value


def float_dtype(dtype: Any, caller: str) -> tf.DType:
    """Returns `tf.float32` or `tf.float64`."""
    expected = f"{caller}: expected dtype float32 or float64"
    # `tf.as_dtype` takes 1 and True as float32.
    require(not isinstance(dtype, (numbers.Real, np.ndarray)), expected, dtype, TypeError)
    try:
        dtype = tf.as_dtype(dtype)
    except TypeError as error:
        raise TypeError(f"{expected}, got {dtype!r}.") from error
    if dtype not in (tf.float32, tf.float64):
        raise TypeError(f"{expected}, got {dtype.name}.")
    return dtype
