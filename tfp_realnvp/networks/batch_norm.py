"""Batch normalization of feature maps, as a pure function."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tfp_realnvp.internal.replicas import LOCAL_STATISTICS, Statistics

__all__ = ["Normalized", "batch_norm"]


class Normalized(NamedTuple):
    """The outputs of `batch_norm`, and the moving statistics after it."""

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
    r"""Normalizes each channel and adds an offset; returns the new moving statistics as values.

    ```
    y = (x - mean) / sqrt(variance + epsilon) + offset
    ```

    With `training=True` the mean and variance are taken over the batch and all positions. The
    moving statistics are updated, `moving <- momentum * moving + (1 - momentum) * batch`, with the
    unbiased variance. Otherwise the moving statistics normalize and do not change. There is no
    scale, because a weight-normalized convolution follows.

    Args:
      inputs: [B, H, W, C], of float32, float64 or half precision.
      offset: [C], of float32, or float64 for inputs of float64, as are all other vectors.
      moving_mean: [C].
      moving_variance: [C].
      training: whether to normalize by the batch.
      statistics: the events that batch statistics average over, and their weights.
      momentum: momentum of the moving statistics.
      epsilon: added to the variance.

    Returns:
      The outputs, [B, H, W, C] in the dtype of the inputs, and the moving mean and variance, [C].

    #### References

    Ioffe, Szegedy: Batch Normalization, algorithm 1.
    """
    moving = moving_mean, moving_variance
    is_local = statistics.weights is None and not statistics.span_replicas
    if inputs.dtype != tf.float64 and (is_local or not training):
        # One fused kernel, which in training returns the updated statistics. The gradient of the
        # operation's first version, which has float32 alone, is traced faster: for later versions
        # TensorFlow makes zeros as gradients of the statistics.
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
    # The kernel has no double precision, and takes statistics without weights of one replica only.
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
