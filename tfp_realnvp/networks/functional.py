"""Functions that networks share: normalization, convolution, modulation."""

from collections.abc import Sequence

import tensorflow as tf

from tfp_realnvp.internal.memoize import traced_once
from tfp_realnvp.internal.replicas import LOCAL_STATISTICS, Statistics


@traced_once
def weight_norm(kernel: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    r"""Scales the filters of a kernel to the norms `scale`. A filter of zeros stays zero.

    ```
    w[..., k] = scale[k] * kernel[..., k] / ||kernel[..., k]||
    ```

    Kernels may be stacked, [N₁, ..., h, w, C, K], with any number of axes before K. The norm of a
    filter runs over the kernel axes that `scale`, [N₁, ..., K], does not have.

    Source: Salimans, Kingma: Weight Normalization, eq. 2.
    """
    axes = list(range(scale.shape.rank - 1, kernel.shape.rank - 1))
    square = tf.reduce_sum(tf.square(kernel), axes, keepdims=True)
    # Without the 1e-30, a filter of zeros would cause a division by zero.
    factor = tf.reshape(scale, square.shape) * tf.math.rsqrt(square + 1e-30)
    return kernel * factor


def convolve(
    inputs: tf.Tensor,
    kernel: tf.Tensor,
    bias: tf.Tensor | None = None,
    strides: int = 1,
    padding: str | Sequence[Sequence[int]] = "SAME",
) -> tf.Tensor:
    """Convolves images in their dtype with a kernel [h, w, C, K] or [C, K], and adds a bias.

    The bias is [K], or [B, 1, 1, K] with a bias for each image.
    """
    kernel = tf.cast(kernel, inputs.dtype)
    if kernel.shape.rank == 2:
        kernel = tf.reshape(kernel, [1, 1, *kernel.shape])
    outputs = tf.nn.conv2d(inputs, kernel, strides, padding)
    if bias is None:
        return outputs
    bias = tf.cast(bias, inputs.dtype)
    return tf.nn.bias_add(outputs, bias) if bias.shape.rank == 1 else outputs + bias


def batch_norm(
    inputs: tf.Tensor,
    offset: tf.Tensor,
    moving_mean: tf.Tensor,
    moving_variance: tf.Tensor,
    *,
    training: bool,
    statistics: Statistics = LOCAL_STATISTICS,
    bessel: tf.Tensor | None = None,
    epsilon: float = 1e-4,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    r"""Normalizes each channel and adds an offset. Also returns the mean and variance it used.

    ```
    y = (x - mean) / sqrt(variance + epsilon) + offset
    ```

    With `training=True`, normalizes by the mean and the biased variance over the batch and all
    positions, otherwise by the moving statistics. There is no scale, because a weight-normalized
    convolution follows.

    Inputs and outputs are [B, H, W, C] in float32, float64 or half precision; offset and moving
    statistics are [C] in float64 or float32. `statistics` holds the events and their weights.
    `bessel` is `inverse_bessel(inputs)`, which inputs with equally many positions can share.

    Source: Ioffe, Szegedy: Batch Normalization, algorithm 1.
    """
    is_local = statistics.weights is None and not statistics.span_replicas
    if inputs.dtype != tf.float64 and (is_local or not training):
        # One fused kernel normalizes; in training it also returns the moments. Version 1 takes only
        # float32, but its gradient traces faster: it creates no zero gradients for the moments.
        is_first = training and inputs.dtype == tf.float32
        fused = tf.raw_ops.FusedBatchNorm if is_first else tf.raw_ops.FusedBatchNormV3
        outputs, mean, variance = fused(
            x=inputs,
            scale=tf.ones_like(offset),
            offset=offset,
            mean=moving_mean,
            variance=moving_variance,
            epsilon=epsilon,
            is_training=training,
        )[:3]
        if not training:
            return outputs, moving_mean, moving_variance
        # The kernel returns the unbiased variance.
        return outputs, mean, variance * (inverse_bessel(inputs) if bessel is None else bessel)
    # The fused kernel supports neither float64, nor weights, nor statistics over replicas.
    values, moments = tf.cast(inputs, offset.dtype), (moving_mean, moving_variance)
    if training:
        moments = statistics.moments(values, shift=moving_mean)
    outputs = tf.nn.batch_normalization(values, *moments, offset, None, epsilon)
    return tf.cast(outputs, inputs.dtype), *moments


def inverse_bessel(images: tf.Tensor) -> tf.Tensor:
    """Returns biased / unbiased variance, (N - 1) / N, of the N = B H W values of a channel."""
    return 1 - images.shape[-1] / tf.cast(tf.size(images), tf.float32)


def layer_norm(x: tf.Tensor, epsilon: float) -> tf.Tensor:
    """Normalizes vectors [..., F] to mean 0 and variance 1."""
    # Keras uses `tf.nn.moments`, whose second derivatives are wrong.
    x -= tf.reduce_mean(x, axis=-1, keepdims=True)
    return x * tf.math.rsqrt(tf.reduce_mean(tf.square(x), axis=-1, keepdims=True) + epsilon)


def modulated(x: tf.Tensor, factor: tf.Tensor | None, shift: tf.Tensor | None) -> tf.Tensor:
    """Returns `(1 + factor) x + shift`; `None` means 0."""
    x = x if factor is None else x + x * factor
    return x if shift is None else x + shift
