"""The operations of the networks as pure functions: normalizations, convolution, modulation."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tfp_realnvp.internal.kept import traced_once
from tfp_realnvp.internal.replicas import LOCAL_STATISTICS, Statistics

__all__ = ["batch_norm", "convolve", "layer_norm", "modulated", "shifted", "weight_norm"]


@traced_once
def weight_norm(kernel: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    r"""Returns kernels whose filters have the norms `scale`.

    ```
    w[..., k] = scale[k] * kernel[..., k] / ||kernel[..., k]||
    ```

    Kernels of one shape may be stacked along leading axes: the norm of a filter is taken over the
    axes of `kernel` that `scale` does not have. A filter of zeros stays zero.

    Args:
      kernel: [N₁, ..., h, w, C, K], floating, with any number of axes N and of axes before K.
      scale: [N₁, ..., K], of the same dtype.

    #### References

    Salimans, Kingma: Weight Normalization, eq. 2; used throughout Real NVP (section 3.7).
    """
    axes = list(range(scale.shape.rank - 1, kernel.shape.rank - 1))
    square = tf.reduce_sum(tf.square(kernel), axes, keepdims=True)
    # The small number keeps a filter of zeros at zero.
    factor = tf.reshape(scale, square.shape) * tf.math.rsqrt(square + 1e-30)
    return kernel * factor


def convolve(
    inputs: tf.Tensor,
    kernel: tf.Tensor,
    bias: tf.Tensor | None = None,
    strides: int = 1,
    padding: str | Sequence[Sequence[int]] = "SAME",
) -> tf.Tensor:
    """Returns `tf.nn.conv2d` of images [B, H, W, C], with a kernel [h, w, C, K] and a bias [K].

    A kernel [C, K] is 1×1. Kernels and biases, float32 in a network of half precision, are cast to
    the inputs' dtype.
    """
    kernel = tf.cast(kernel, inputs.dtype)
    if kernel.shape.rank == 2:
        kernel = tf.reshape(kernel, [1, 1, *kernel.shape])
    outputs = tf.nn.conv2d(inputs, kernel, strides, padding)
    return outputs if bias is None else tf.nn.bias_add(outputs, tf.cast(bias, inputs.dtype))


def batch_norm(
    inputs: tf.Tensor,
    offset: tf.Tensor,
    moving_mean: tf.Tensor,
    moving_variance: tf.Tensor,
    *,
    training: bool,
    statistics: Statistics = LOCAL_STATISTICS,
    momentum: float = 0.9,
    epsilon: float = 1e-4,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    r"""Normalizes each channel, adds an offset, and returns the new moving statistics.

    ```
    y = (x - mean) / sqrt(variance + epsilon) + offset
    ```

    With `training=True` the mean and variance are taken over the batch and all positions, and the
    moving statistics are updated with the unbiased variance,
    `moving <- momentum * moving + (1 - momentum) * batch`. Otherwise the moving statistics
    normalize and do not change. There is no scale, because a weight-normalized convolution follows.

    The inputs are [B, H, W, C], of float32, float64 or half precision; offset and statistics are
    [C], of float64 for inputs of float64, else of float32. `statistics` says which events batch
    statistics average over, with which weights. The outputs have the dtype of the inputs.

    #### References

    Ioffe, Szegedy: Batch Normalization, algorithm 1.
    """
    moving = moving_mean, moving_variance
    is_local = statistics.weights is None and not statistics.span_replicas
    if inputs.dtype != tf.float64 and (is_local or not training):
        # One fused kernel, which in training returns the updated statistics. The first version of
        # the operation takes float32 only. Its gradient is traced faster, because TensorFlow does
        # not make zeros as gradients of the statistics.
        is_first = training and inputs.dtype == tf.float32
        fused = tf.raw_ops.FusedBatchNorm if is_first else tf.raw_ops.FusedBatchNormV3
        outputs, *moved = fused(
            x=inputs,
            scale=tf.ones_like(offset),
            offset=offset,
            mean=moving_mean,
            variance=moving_variance,
            epsilon=epsilon,
            exponential_avg_factor=1 - momentum if training else 1.0,
            is_training=training,
        )[:3]
        return outputs, *(moved if training else moving)
    # The fused kernel has no float64, no weights, and no statistics of several replicas.
    values = tf.cast(inputs, offset.dtype)
    mean, variance = moving
    if training:
        mean, variance, count = statistics.moments(values, shift=moving_mean)
        unbiased = variance * count / tf.maximum(count - 1, 1)
        moving = tuple(
            before + (1 - momentum) * (batch - before)
            for before, batch in zip(moving, (mean, unbiased), strict=True)
        )
    outputs = tf.nn.batch_normalization(values, mean, variance, offset, None, epsilon)
    return tf.cast(outputs, inputs.dtype), *moving


def layer_norm(x: tf.Tensor, epsilon: float) -> tf.Tensor:
    """Returns vectors with a mean of 0 and a variance of 1, [..., F]."""
    # `tf.nn.moments`, which Keras uses, has wrong second derivatives.
    x -= tf.reduce_mean(x, axis=-1, keepdims=True)
    return x * tf.math.rsqrt(tf.reduce_mean(tf.square(x), axis=-1, keepdims=True) + epsilon)


def modulated(x: tf.Tensor, factor: tf.Tensor | None, shift: tf.Tensor | None) -> tf.Tensor:
    """Returns `(1 + factor) x + shift`, or `x` if both are `None`."""
    return x if factor is None else x + x * factor + shift


def shifted(x: tf.Tensor, shift: tf.Tensor | None) -> tf.Tensor:
    """Returns `x + shift`, or `x` if the shift is `None`."""
    return x if shift is None else x + shift
