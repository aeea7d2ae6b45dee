"""The rate of the machine's matrix product, which bounds every contender.

Run as a program it prints one JSON object: GFLOP/s by dtype.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

__all__ = ["bfloat16_pays", "matrix_rates", "rate_of"]


def matrix_rates(side: int = 2048, rounds: int = 5) -> dict[str, float]:
    """Returns GFLOP/s of a square matrix product in float32 and bfloat16, by TensorFlow."""
    import tensorflow as tf

    rates = {}
    for dtype in (tf.float32, tf.bfloat16):
        matrix = tf.cast(tf.random.normal([side, side]), dtype)
        product = tf.function(tf.matmul)
        rates[dtype.name] = rate_of(lambda x, f=product: f(x, x).numpy(), matrix, rounds)
    return rates


def rate_of(square: Callable[[Any], Any], matrix: Any, rounds: int) -> float:
    """Returns GFLOP/s of a function that multiplies a square matrix by itself and waits for it."""
    square(matrix)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        square(matrix)
        seconds.append(time.perf_counter() - start)
    return 2 * int(matrix.shape[0]) ** 3 / statistics.median(seconds) / 1e9


def bfloat16_pays(rates: dict[str, float]) -> bool:
    """Returns whether the machine is faster in bfloat16, by the outcome of `matrix_rates`.

    Without instructions for it convolutions are ten times slower than in float32, and not all
    machines that have some gain by them.
    """
    return rates["bfloat16"] > 1.2 * rates["float32"]


if __name__ == "__main__":
    print(json.dumps(matrix_rates()))
