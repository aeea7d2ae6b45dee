"""Inference of a `ConvResNet`, with fewer operations than in training.

*   With moving statistics, a batch normalization is an affine map of each channel, `x * factor +
    shift`. After a convolution it is a part of the kernel and bias.
*   The last block's second convolution and its skip connection are one linear map (in training,
    too).
*   A checkerboard coupling uses half of the output: the last convolutions compute only that half.

`benchmarks/README.md` has the gains in `log_prob` and `sample`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf

from tfp_realnvp.networks.batch_norm import batch_norm
from tfp_realnvp.networks.conditioner import shifted
from tfp_realnvp.networks.weight_norm import convolve

if TYPE_CHECKING:
    import keras

    from tfp_realnvp.networks.conv_resnet import ConvResNet

__all__ = ["folded_inference", "joined_skip", "skip_is_joined"]


def joined_skip(kernel: tf.Tensor, bias: tf.Tensor, skip: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns kernel and bias of a convolution followed by a skip connection, as one convolution.

    The input of the last skip connection is `h + conv(x)`, and nothing else uses this sum. The
    connection is linear. Its kernel for h is added to the kernel of the previous connection, whose
    input is h, too. Its kernel for `conv(x)` is multiplied with the kernel of the convolution. This
    saves one convolution and two sums of feature maps.

    Args:
      kernel: [3, 3, F, F].
      bias: [F].
      skip: [F, F], kernel of the skip connection.
    """
    return tf.tensordot(kernel, skip, 1), tf.linalg.matvec(skip, bias, transpose_a=True)


def skip_is_joined(images: tf.Tensor, num_filters: int) -> bool:
    """Returns whether `joined_skip` saves time for images of this size."""
    # The product of kernels costs as much as a 1×1 convolution at 9 * num_filters positions. Five
    # images of 2 * num_filters positions have more than that.
    positions = images.shape[1:3].num_elements()
    return positions is not None and positions >= 2 * num_filters


def folded_inference(
    network: ConvResNet, inputs: tf.Tensor, conditional_input: tf.Tensor | None = None
) -> tf.Tensor:
    """Returns the output of `network` for `inputs`, [B, H, W, C], with moving statistics."""
    weights = network.normalized_weights()
    variables = network.offsets, network.moving_means, network.moving_variances
    factors, shifts = map(tf.unstack, _affine(*variables, network.epsilon))
    # Even normalizations are of h, odd ones of the output of a block's first convolution.
    norms = list(zip(*(tf.unstack(v.value) for v in variables), strict=True))
    kernels, biases = map(tf.unstack, (weights.block_kernels, weights.block_biases))
    skips, bias = weights.skip_kernels, tf.reduce_sum(weights.skip_biases, axis=0)
    if network.attention is None:
        skips, bias = skips * factors[-1], bias * factors[-1] + shifts[-1]
    skips = tf.unstack(skips)

    condition_shifts = network.condition_shifts(conditional_input)
    h = convolve(_both_signs(network, inputs), weights.input_kernel, weights.input_bias)
    h = shifted(h, network.convolved_condition(conditional_input))
    # The maps and kernels whose convolutions add up to the input of the output convolution.
    terms = [(h, skips[0])]
    for i in range(network.num_blocks):
        norm = norms[2 * i]
        x = batch_norm(h, *norm, training=False, epsilon=network.epsilon).outputs
        x = tf.nn.relu(shifted(x, condition_shifts[2 * i]))
        x = convolve(x, kernels[2 * i] * factors[2 * i + 1], shifts[2 * i + 1])
        x = tf.nn.relu(shifted(x, condition_shifts[2 * i + 1]))
        second, skip = kernels[2 * i + 1], skips[i + 1]
        if i == network.num_blocks - 1 and skip_is_joined(h, network.num_filters):
            terms[-1] = (h, skips[i] + skip)
            joined, joined_bias = joined_skip(second, biases[i], skip)
            terms.append((x, joined))
            bias += joined_bias
        else:
            h += convolve(x, second, biases[i])
            terms.append((h, skip))
    output_conv = weights.output_kernel, weights.output_bias
    # Attention needs the sum at all positions, before its normalization.
    is_whole = network.attention is not None or not _has_cells(inputs)
    if network.checkerboard_parity is None or is_whole:
        # The bias goes into the last convolution, where TensorFlow fuses it, the sum and the ReLU.
        total = convolve(*terms[-1], bias)
        if network.num_blocks:
            total += tf.add_n([convolve(*term) for term in terms[:-1]])
        if network.attention is not None:
            total = network.attention(total)
            total = batch_norm(total, *norms[-1], training=False, epsilon=network.epsilon).outputs
        x = tf.nn.relu(shifted(total, condition_shifts[-1]))
        return network.at_changed_positions(convolve(x, *output_conv))
    halves = _sum_at_changed_positions(terms, bias, network.checkerboard_parity)
    halves = [tf.nn.relu(shifted(half, condition_shifts[-1])) for half in halves]
    outputs = [convolve(half, *output_conv) for half in halves]
    return _put_changed(outputs, network.checkerboard_parity)


def _affine(
    offset: keras.Variable, mean: keras.Variable, variance: keras.Variable, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor]:
    offset, mean, variance = (tf.convert_to_tensor(v.value) for v in (offset, mean, variance))
    factor = tf.math.rsqrt(variance + epsilon)
    return factor, offset - mean * factor


def _both_signs(network: ConvResNet, inputs: tf.Tensor) -> tf.Tensor:
    """Returns the input of the first convolution; its normalization is a 1×1 convolution."""
    factor, shift = _affine(
        network.input_offset, network.input_mean, network.input_variance, network.epsilon
    )
    signs = network.input_factor * tf.linalg.diag(factor)
    shift *= network.input_factor
    kernel = tf.concat([signs, -signs], axis=-1)
    x = convolve(inputs, kernel, tf.concat([shift, -shift], axis=-1))
    return network.with_board(tf.nn.relu(x))


def _has_cells(images: tf.Tensor) -> bool:
    """Returns whether images [B, H, W, C] are known to consist of 2×2 cells."""
    return all(side is not None and side % 2 == 0 for side in images.shape[1:3])


def _sum_at_changed_positions(
    terms: list[tuple[tf.Tensor, tf.Tensor]], bias: tf.Tensor, parity: int
) -> list[tf.Tensor]:
    """Returns the sum of convolutions and the bias, at the positions of `_take_changed`."""
    # The 1×1 convolutions of all maps are one convolution of the concatenated maps.
    maps, kernels = zip(*(term for term in terms if term[1].shape.rank == 2), strict=True)
    kernel = tf.concat(kernels, axis=0)
    half_maps = zip(*(_take_changed(feature_map, parity) for feature_map in maps), strict=True)
    inputs = [tf.concat(feature_maps, axis=-1) for feature_maps in half_maps]
    if len(maps) == len(terms):
        return [convolve(half_input, kernel, bias) for half_input in inputs]
    images, wide_kernel = terms[-1]
    halves = []
    for half_input, (i, j) in zip(inputs, _changed_in_cell(parity), strict=True):
        # With a stride of 2 and this padding, a 3×3 kernel is centered at the changed positions.
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


def _put_changed(halves: list[tf.Tensor], parity: int) -> tf.Tensor:
    """Returns [B, H, W, C] with zeros where `_take_changed` takes nothing."""
    _, height, width, channels = halves[0].shape
    rows = [
        tf.stack([tf.zeros_like(half), half] if j else [half, tf.zeros_like(half)], axis=3)
        for half, (_, j) in zip(halves, _changed_in_cell(parity), strict=True)
    ]
    return tf.reshape(tf.stack(rows, axis=2), [-1, 2 * height, 2 * width, channels])
