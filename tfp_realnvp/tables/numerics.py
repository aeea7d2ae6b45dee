"""Roots of many increasing functions at once, and evenly distributed points."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["even_points", "solve_increasing"]

_MAX_STEPS = 100


def solve_increasing(
    function: Callable[[np.ndarray, np.ndarray], np.ndarray],
    guesses: np.ndarray,
    tolerance: float = 1e-7,
) -> np.ndarray:
    """Returns x with |function(x)| at most `tolerance`, by regula falsi and bisection in turn.

    Source: Dowell, Jarratt: A modified regula falsi method for computing the root of an equation,
    1971 (the "Illinois" method).

    Args:
      function: of numbers [M] and of their indices [M] in `guesses`, with values [M]. It does not
        fall, and has values of both signs.
      guesses: [N].
      tolerance: of the values.
    """
    indices = np.arange(len(guesses))
    low, high = (guesses + step for step in (-1.0, 1.0))
    f_low, f_high = function(low, indices), function(high, indices)
    for bound, values, sign in ((low, f_low, -1.0), (high, f_high, 1.0)):
        step = 1.0
        wrong = np.flatnonzero(sign * values < 0)
        while len(wrong) and step < 1e12:
            step *= 2
            bound[wrong] += sign * step
            values[wrong] = function(bound[wrong], wrong)
            wrong = wrong[sign * values[wrong] < 0]
    roots = np.where(-f_low < f_high, low, high)
    active = np.flatnonzero(np.minimum(-f_low, f_high) > tolerance)
    for step in range(_MAX_STEPS):
        if not len(active):
            break
        left, right = low[active], high[active]
        share = 0.5 if step % 3 == 2 else f_low[active] / (f_low[active] - f_high[active])
        x = left + share * (right - left)
        f = function(x, active)
        roots[active] = x
        is_low = f < 0
        # The value of a bound that stays is halved, so that it moves soon.
        below, above = active[is_low], active[~is_low]
        low[below], f_low[below] = x[is_low], f[is_low]
        f_high[below] /= 2
        high[above], f_high[above] = x[~is_low], f[~is_low]
        f_low[above] /= 2
        active = active[(abs(f) > tolerance) & (right > left)]
    return roots


def even_points(number: int, size: int) -> np.ndarray:
    """Returns points [number, size] that fill the unit cube evenly.

    They are k (1/g, 1/g², ...) modulo 1, where g is the root of g^(size + 1) = g + 1.

    Source: Roberts: The unreasonable effectiveness of quasirandom sequences, 2018.
    """
    root = 2.0
    for _ in range(60):
        root = (1 + root) ** (1 / (size + 1))
    steps = root ** -np.arange(1, size + 1)
    return (0.5 + np.arange(1, number + 1)[:, np.newaxis] * steps) % 1.0
