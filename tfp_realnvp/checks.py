"""Arguments of constructors, or a sentence that says what was expected instead."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["choice", "finite", "flag", "float_dtype", "integer", "momentum", "positive", "real"]


def real(value: Any, is_valid: Callable[[Any], bool], expected: str) -> Any:
    """Returns a number that is valid.

    #### Example

    >>> real(0.5, lambda momentum: 0 <= momentum < 1, "expected a momentum in [0, 1)")
    0.5

    Args:
      value: the argument.
      is_valid: whether a number will do; comparisons that NaN fails.
      expected: the beginning of the sentence.

    Raises:
      TypeError: if `value` is no Python or NumPy number.
      ValueError: if the number is not valid.
    """
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{expected}, got {value!r}.")
    if not is_valid(value):
        raise ValueError(f"{expected}, got {value}.")
    return value


def integer(value: Any, at_least: int, expected: str) -> int:
    """Returns a whole number that is large enough as an `int`.

    #### Example

    >>> integer(4.0, 1, "expected a positive num_filters")
    4

    Args:
      value: the argument.
      at_least: the smallest that will do.
      expected: the beginning of the sentence.

    Raises:
      TypeError: if `value` is no Python or NumPy number.
      ValueError: if the number has a fraction, is not finite or too small.
    """

    def is_valid(number: Any) -> bool:
        is_whole = isinstance(number, numbers.Integral) or float(number).is_integer()
        return is_whole and number >= at_least

    return int(real(value, is_valid, expected))


def finite(value: Any, at_least: float, expected: str) -> Any:
    """Returns a number that is finite and large enough, also in single precision.

    #### Example

    >>> finite(0.5, 0, "expected a finite scale of at least 0")
    0.5

    Args:
      value: the argument.
      at_least: the smallest that will do.
      expected: the beginning of the sentence.

    Raises:
      TypeError: if `value` is no Python or NumPy number.
      ValueError: if the number is not finite or too small.
    """
    largest = float(np.finfo(np.float32).max)
    return real(value, lambda number: at_least <= number <= largest, expected)


def positive(value: Any, expected: str, dtype: Any = tf.float32) -> Any:
    """Returns a number that is still positive and finite in a dtype: 1e-50 is 0 in float32.

    #### Example

    >>> positive(1e-4, "expected a positive epsilon")
    0.0001

    Args:
      value: the argument.
      expected: the beginning of the sentence.
      dtype: in which it is to be positive.

    Raises:
      TypeError: if `value` is no Python or NumPy number.
      ValueError: if the number is not positive or not finite.
    """
    limits = np.finfo(tf.as_dtype(dtype).as_numpy_dtype)
    smallest, largest = float(limits.tiny), float(limits.max)
    return real(value, lambda number: smallest <= number <= largest, expected)


def momentum(value: Any, owner: str) -> Any:
    """Returns a momentum of moving statistics, in [0, 1).

    #### Example

    >>> momentum(0.9, "layer")
    0.9

    Args:
      value: the argument.
      owner: name of the layer or bijector.

    Raises:
      TypeError: if `value` is no Python or NumPy number.
      ValueError: if the number is out of range.
    """
    return real(value, lambda number: 0 <= number < 1, f"{owner}: expected a momentum in [0, 1)")


def flag(value: Any, expected: str) -> bool:
    """Returns a bool, where anything else would count as true or false without a word.

    #### Example

    >>> flag(True, "expected a bool as use_bias")
    True

    Args:
      value: the argument.
      expected: the beginning of the sentence.

    Raises:
      TypeError: if `value` is no Python or NumPy bool.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{expected}, got {value!r}.")
    return bool(value)


def choice(value: Any, choices: Sequence[str | None], expected: str) -> str | None:
    """Returns one of some words.

    #### Example

    >>> choice("batch", ("running", "batch"), "expected statistics")
    'batch'

    Args:
      value: the argument.
      choices: all that will do.
      expected: the beginning of the sentence, which goes on with the choices.

    Raises:
      ValueError: if `value` is another one.
    """
    if not (isinstance(value, str) or value is None) or value not in choices:
        raise ValueError(f"{expected} of {tuple(choices)}, got {value!r}.")
    return value


def float_dtype(dtype: Any, owner: str) -> tf.DType:
    """Returns float32 or float64.

    #### Example

    >>> float_dtype("float32", "bijector")
    tf.float32

    Args:
      dtype: the argument.
      owner: name of what has this dtype.

    Raises:
      TypeError: if it is another one.
    """
    expected = f"{owner}: expected dtype float32 or float64"
    try:
        given = tf.as_dtype(dtype)
    except TypeError as error:
        raise TypeError(f"{expected}, got {dtype!r}.") from error
    # TensorFlow counts its dtypes, and takes 1 and True for float32.
    if isinstance(dtype, (numbers.Real, np.ndarray)):
        raise TypeError(f"{expected}, got {dtype!r}.")
    if given not in (tf.float32, tf.float64):
        raise TypeError(f"{expected}, got {given.name}.")
    return given
