"""Batch normalization of feature maps, as a pure function."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tfp_realnvp.internal.replicas import LOCAL_STATISTICS, Statistics

__all__ = ["Normalized", "batch_norm"]


class Normalized(NamedTuple):
    """The outputs of `batch_norm`, and the new moving statistics."""

    outputs: tf.Tensor
    moving_mean: tf.Tensor
    moving_variance: tf.Tensor


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
) -> Normalized:
    r"""Normalizes each channel, adds an offset, and returns the new moving statistics.

    ```
    y = (x - mean) / sqrt(variance + epsilon) + offset
    ```

    With `training=True` the mean and variance are taken over the batch and all positions, and the
    moving statistics are updated with the unbiased variance,
    `moving <- momentum * moving + (1 - momentum) * batch`. Otherwise the moving statistics
    normalize and do not change. There is no scale, because a weight-normalized convolution follows.

    Args:
      inputs: [B, H, W, C], of float32, float64 or half precision.
      offset, moving_mean, moving_variance: [C], of float64 for inputs of float64, else of float32.
      training: whether to normalize by the batch.
      statistics: the events that batch statistics average over, and their weights.
      momentum, epsilon: as in the formulas above.

    Returns:
      The outputs, [B, H, W, C] in the dtype of the inputs, and the moving mean and variance, [C].

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
        return Normalized(outputs, *(moved if training else moving))
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
    return Normalized(tf.cast(outputs, inputs.dtype), *moving)
