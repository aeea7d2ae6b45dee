"""Inference of a `ConvResNet` with fewer operations than training.

*   A batch normalization with moving statistics is an affine map of each channel,
    `x * factor + shift`. It is folded into the kernel and bias of the convolution before it.
*   The last block's second convolution and its skip connection are one linear map, in training as
    well.
*   A checkerboard coupling uses half of the output: the last convolutions compute only that half.

`benchmarks/README.md` has the gains in `log_prob` and `sample`.
"""

from __future__ import annotations

import tensorflow as tf

from tfp_realnvp.internal.traced_once import traced_once
from tfp_realnvp.networks.weight_norm import convolve

__all__ = [
    "affine_of",
    "has_cells",
    "joined_skip",
    "put_changed",
    "skip_is_joined",
    "sum_at_changed_positions",
]


@traced_once
def joined_skip(kernel: tf.Tensor, bias: tf.Tensor, skip: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the kernel and bias of a convolution with its skip connection, as one convolution.

    The last skip connection takes `h + conv(x)`, which nothing else uses, and is linear. Its kernel
    for h is added to the kernel of the previous skip connection, which takes h as well; its kernel
    for `conv(x)` multiplies the kernel of the convolution.

    Args:
      kernel: [3, 3, F, F].
      bias: [F].
      skip: [F, F], kernel of the skip connection.
    """
    return tf.tensordot(kernel, skip, 1), tf.linalg.matvec(skip, bias, transpose_a=True)


def skip_is_joined(images: tf.Tensor, num_filters: int) -> bool:
    """Returns whether `joined_skip` saves time for images of this size."""
    # The product of kernels costs as much as a 1×1 convolution at 9 * num_filters positions, which
    # five images of 2 * num_filters positions exceed.
    positions = images.shape[1:3].num_elements()
    return positions is not None and positions >= 2 * num_filters


def affine_of(
    offset: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor, *, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns factor and shift of a batch normalization with moving statistics."""
    factor = tf.math.rsqrt(variance + epsilon)
    return factor, offset - mean * factor


def has_cells(images: tf.Tensor) -> bool:
    """Returns whether images [B, H, W, C] are known to consist of 2×2 cells."""
    return all(side is not None and side % 2 == 0 for side in images.shape[1:3])


def sum_at_changed_positions(
    terms: list[tuple[tf.Tensor, tf.Tensor]], bias: tf.Tensor, parity: int
) -> list[tf.Tensor]:
    """Returns the sum of convolutions and the bias, at the positions of `_take_changed`."""
    # One convolution of the concatenated maps replaces the 1×1 convolutions of all maps.
    maps, kernels = zip(*(term for term in terms if term[1].shape.rank == 2), strict=True)
    kernel = tf.concat(kernels, axis=0)
    half_maps = zip(*(_take_changed(feature_map, parity) for feature_map in maps), strict=True)
    inputs = [tf.concat(feature_maps, axis=-1) for feature_maps in half_maps]
    if len(maps) == len(terms):
        return [convolve(half_input, kernel, bias) for half_input in inputs]
    images, wide_kernel = terms[-1]
    halves = []
    for half_input, (i, j) in zip(inputs, _changed_in_cell(parity), strict=True):
        # A stride of 2 and this padding center the 3×3 kernel at the changed positions.
        padding = [[0, 0], [1 - i, i], [1 - j, j], [0, 0]]
        half = convolve(images, wide_kernel, bias, strides=2, padding=padding)
        halves.append(half + convolve(half_input, kernel))
    return halves


def _changed_in_cell(parity: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns row and column of both changed positions of a 2×2 cell."""
    return (0, parity), (1, 1 - parity)


def _take_changed(images: tf.Tensor, parity: int) -> list[tf.Tensor]:
    """Returns the changed positions of even and of odd rows, each [B, H/2, W/2, C]."""
    _, height, width, channels = images.shape
    # Both positions in a row of a cell become channels, side by side.
    cells = tf.reshape(images, [-1, height // 2, 2, width // 2, 2 * channels])
    return [
        cells[:, :, i, :, j * channels : (j + 1) * channels] for i, j in _changed_in_cell(parity)
    ]


def put_changed(halves: list[tf.Tensor], parity: int) -> tf.Tensor:
    """Returns [B, H, W, C] with zeros where `_take_changed` takes nothing."""
    _, height, width, channels = halves[0].shape
    rows = [
        tf.stack([tf.zeros_like(half), half] if j else [half, tf.zeros_like(half)], axis=3)
        for half, (_, j) in zip(halves, _changed_in_cell(parity), strict=True)
    ]
    return tf.reshape(tf.stack(rows, axis=2), [-1, 2 * height, 2 * width, channels])
