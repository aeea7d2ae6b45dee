"""The rate of the machine's matrix product, which bounds every contender.

Run as a program it prints one JSON object: GFLOP/s by dtype.
"""

from __future__ import annotations

import json
import statistics
import time

__all__ = ["matrix_rates"]


def matrix_rates(side: int = 2048, rounds: int = 5) -> dict[str, float]:
    """Returns GFLOP/s of a square matrix product in float32 and bfloat16, by TensorFlow."""
    import tensorflow as tf

    rates = {}
    for dtype in (tf.float32, tf.bfloat16):
        matrix = tf.cast(tf.random.normal([side, side]), dtype)
        product = tf.function(tf.matmul)
        product(matrix, matrix).numpy()
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            product(matrix, matrix).numpy()
            seconds.append(time.perf_counter() - start)
        rates[dtype.name] = 2 * side**3 / statistics.median(seconds) / 1e9
    return rates


if __name__ == "__main__":
    print(json.dumps(matrix_rates()))
