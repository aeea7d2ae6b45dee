"""The checkerboard of masks and networks, and its positions in cells of 2×2.

A checkerboard coupling keeps the positions where the board is 1, and changes the others.
"""

import numpy as np
import tensorflow as tf

from tfp_realnvp.internal import batch_dims, validation


def check_parity(parity: int) -> int:
    """Returns 0 or 1, or raises `ValueError`."""
    validation.require(parity in (0, 1), "parity: expected 0 or 1", parity)
    return int(parity)


def checkerboard(image: tf.Tensor, parity: int) -> tf.Tensor:
    """Returns [H, W, 1] with 1 where `row + column + parity` is odd, else 0."""
    height, width = batch_dims.sides(image)
    if tf.is_tensor(height):
        rows, columns = tf.range(height)[:, tf.newaxis, tf.newaxis], tf.range(width)[:, tf.newaxis]
        return tf.cast((rows + columns + parity) % 2, image.dtype)
    # With a known size, the board is a constant of the graph.
    board = (np.add.outer(np.arange(height), np.arange(width)) + parity) % 2
    return tf.constant(board[..., np.newaxis], image.dtype)


def changed_in_cell(parity: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns row and column of both changed positions in a 2×2 cell."""
    return (0, parity), (1, 1 - parity)


def take_changed(images: tf.Tensor, parity: int) -> list[tf.Tensor]:
    """Returns the changed positions in even and in odd rows, each [B, H/2, W/2, C]."""
    _, height, width, channels = images.shape
    # The last axis holds the channels of the two positions in a row of a 2×2 cell.
    cells = tf.reshape(images, [-1, height // 2, 2, width // 2, 2 * channels])
    return [
        cells[:, :, i, :, j * channels : (j + 1) * channels] for i, j in changed_in_cell(parity)
    ]


def put_changed(halves: list[tf.Tensor], parity: int) -> tf.Tensor:
    """Returns [B, H, W, C] with zeros at kept positions; inverts `take_changed`."""
    _, height, width, channels = halves[0].shape
    rows = [
        tf.stack([tf.zeros_like(half), half] if j else [half, tf.zeros_like(half)], axis=3)
        for half, (_, j) in zip(halves, changed_in_cell(parity), strict=True)
    ]
    return tf.reshape(tf.stack(rows, axis=2), [-1, 2 * height, 2 * width, channels])
