"""Arguments that are numbers, or a sentence that says what was expected instead."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

__all__ = ["integer", "real"]


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
