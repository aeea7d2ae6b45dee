"""A `ConvResNet` in inference, with normalizations folded into convolutions.

By moving statistics a batch normalization is an affine map of each channel, `x * factor + shift`.
After a convolution it only changes kernel and bias. For a checkerboard coupling, moreover, the end
of the network is computed only at the positions that the coupling changes. Together this makes
`log_prob` and `sample` faster; see `benchmarks/README.md`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf

from tfp_realnvp.networks.weight_norm import convolve

if TYPE_CHECKING:
    from tfp_realnvp.networks.conv_resnet import ConvResNet

__all__ = ["folded_inference"]


def folded_inference(network: ConvResNet, inputs: tf.Tensor) -> tf.Tensor:
    """Returns what `network` gives for `inputs`, [B, H, W, C], by moving statistics."""
    weights = network.normalized_weights()
    factors, shifts = _affine(
        network.offsets, network.moving_means, network.moving_variances, network.epsilon
    )
    # The even ones normalize h, the odd ones what the first convolution of a block gives.
    first_kernels = weights.block_kernels[0::2] * factors[1::2, None, None, None]
    first_convs = zip(tf.unstack(first_kernels), tf.unstack(shifts[1::2]), strict=True)
    second_convs = zip(
        tf.unstack(weights.block_kernels[1::2]), tf.unstack(weights.block_biases), strict=True
    )
    norms = zip(tf.unstack(factors[:-1:2]), tf.unstack(shifts[:-1:2]), strict=True)
    skips = tf.unstack(weights.skip_kernels * factors[-1])
    bias = weights.skip_bias * factors[-1] + shifts[-1]

    h = convolve(_both_signs(network, inputs), weights.input_kernel, weights.input_bias)
    maps = [h]
    for norm, first, second in zip(norms, first_convs, second_convs, strict=True):
        factor, shift = (tf.cast(each, h.dtype) for each in norm)
        x = tf.nn.relu(convolve(tf.nn.relu(h * factor + shift), *first))
        h += convolve(x, *second)
        maps.append(h)
    output_conv = weights.output_kernel, weights.output_bias
    if network.checkerboard_parity is None or not _has_cells(inputs):
        total = tf.add_n([convolve(*pair) for pair in zip(maps, skips, strict=True)])
        total += tf.cast(bias, total.dtype)
        return network.at_changed_positions(convolve(tf.nn.relu(total), *output_conv))
    # One 1×1 convolution of all maps, at the changed positions only.
    kernel = tf.concat(skips, axis=2)
    halves = [_take_changed(each, network.checkerboard_parity) for each in maps]
    outputs = [
        convolve(tf.nn.relu(convolve(tf.concat(rows, axis=-1), kernel, bias)), *output_conv)
        for rows in zip(*halves, strict=True)
    ]
    return _put_changed(outputs, network.checkerboard_parity)


def _affine(offset, mean, variance, epsilon: float) -> tuple[tf.Tensor, tf.Tensor]:
    offset, mean, variance = (tf.convert_to_tensor(v.value) for v in (offset, mean, variance))
    factor = tf.math.rsqrt(variance + epsilon)
    return factor, offset - mean * factor


def _both_signs(network: ConvResNet, inputs: tf.Tensor) -> tf.Tensor:
    """Returns the input of the first convolution; normalizing and doubling is one 1×1 kernel."""
    factor, shift = (
        network.input_factor * each
        for each in _affine(
            network.input_offset, network.input_mean, network.input_variance, network.epsilon
        )
    )
    signs = tf.linalg.diag(factor)
    kernel = tf.concat([signs, -signs], axis=-1)[None, None]
    x = convolve(inputs, kernel, tf.concat([shift, -shift], axis=-1))
    return network.with_board(tf.nn.relu(x))


def _has_cells(images: tf.Tensor) -> bool:
    """Returns whether images [B, H, W, C] are known to consist of 2×2 cells."""
    return all(side is not None and side % 2 == 0 for side in images.shape[1:3])


def _take_changed(images: tf.Tensor, parity: int) -> list[tf.Tensor]:
    """Returns the changed positions of even and of odd rows, each [B, H/2, W/2, C]."""
    _, height, width, channels = images.shape
    # Both positions of a row of a cell lie side by side, as channels.
    cells = tf.reshape(images, [-1, height // 2, 2, width // 2, 2 * channels])
    columns = parity, 1 - parity
    return [cells[:, :, i, :, j * channels : (j + 1) * channels] for i, j in enumerate(columns)]


def _put_changed(halves: list[tf.Tensor], parity: int) -> tf.Tensor:
    """Returns [B, H, W, C] with zeros where `_take_changed` takes nothing."""
    _, height, width, channels = halves[0].shape
    columns = parity, 1 - parity
    rows = [
        tf.stack([tf.zeros_like(half), half] if j else [half, tf.zeros_like(half)], axis=3)
        for half, j in zip(halves, columns, strict=True)
    ]
    return tf.reshape(tf.stack(rows, axis=2), [-1, 2 * height, 2 * width, channels])
