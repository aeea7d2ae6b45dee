"""The checkerboard of an image of any size."""

from __future__ import annotations

import numbers

import numpy as np
import tensorflow as tf

__all__ = ["check_parity", "checkerboard"]


def check_parity(parity: int) -> int:
    """Returns 0 or 1, or raises `ValueError`."""
    if not (isinstance(parity, numbers.Real) and parity in (0, 1)):
        raise ValueError(f"parity: expected 0 or 1, got {parity!r}.")
    return int(parity)


def checkerboard(image: tf.Tensor, parity: int) -> tf.Tensor:
    """Returns [H, W, 1] with 1 where `row + column + parity` is odd, else 0."""
    height, width = image.shape[-3:-1]
    if height is None or width is None:
        height, width = tf.unstack(tf.shape(image)[-3:-1])
        rows, columns = tf.range(height)[:, tf.newaxis, tf.newaxis], tf.range(width)[:, tf.newaxis]
        return tf.cast((rows + columns + parity) % 2, image.dtype)
    # The size is known, so the board is a constant of the graph.
    board = (np.add.outer(np.arange(height), np.arange(width)) + parity) % 2
    return tf.constant(board[..., np.newaxis], image.dtype)
