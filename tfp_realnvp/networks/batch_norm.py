"""Batch normalisation inside a conditioner, by TensorFlow's fused kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp import checks, replicas

__all__ = ["BatchNorm"]

# The fused kernel is slow on the CPU for a number of channels that is no multiple of this one.
_VECTOR = 16


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class BatchNorm(keras.layers.Layer):
    r"""Normalises each channel of [B, H, W, C] by batch or moving statistics, and adds an offset.

    ```
    y = (x - mean) / sqrt(variance + epsilon) + offset
    ```

    With `training=True` by those of the batch, and the moving ones follow with `momentum`. There
    is no scale: a weight-normalised convolution comes next. `keras.layers.BatchNormalization` does
    the same by separate operations, which in float32 on a CPU takes three times as long, and casts
    half precision up; here the statistics are float32 and the images stay as they are. The moving
    variance is the unbiased one, as that of the fused kernel.

    #### Example

    >>> import tensorflow as tf
    >>> layer = BatchNorm()
    >>> y = layer(tf.random.normal([64, 8, 8, 3], mean=5.0, stddev=2.0), training=True)
    >>> bool(tf.abs(tf.math.reduce_std(y) - 1) < 1e-2), bool(layer.moving_mean[0] > 0.4)
    (True, True)

    #### References

    Ioffe, Szegedy: Batch Normalization, algorithm 1.
    """

    def __init__(self, *, momentum: float = 0.9, epsilon: float = 1e-4, **kwargs: Any) -> None:
        """Constructs the layer.

        Args:
          momentum: of the moving statistics, in [0, 1).
          epsilon: added to the variance, positive.
          **kwargs: `name`, `dtype`, as in `keras.layers.Layer`.

        Raises:
          ValueError: if `momentum` or `epsilon` is out of range.
          TypeError: if one of them is no number.
        """
        super().__init__(**kwargs)
        checks.momentum(momentum, self.name)
        checks.positive(epsilon, f"{self.name}: expected a positive epsilon")
        self.momentum = momentum
        self.epsilon = epsilon

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the variables for inputs of `input_shape`, [B, H, W, C]."""
        shape = (input_shape[-1],)
        # In the variables' own precision, also when the layer computes in half of it.
        self.offset = self.add_weight(
            name="offset", shape=shape, initializer="zeros", autocast=False
        )
        moving = {"shape": shape, "trainable": False, "aggregation": "mean", "autocast": False}
        self.moving_mean = self.add_weight(name="moving_mean", initializer="zeros", **moving)
        self.moving_variance = self.add_weight(name="moving_variance", initializer="ones", **moving)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns the normalised inputs, [B, H, W, C]."""
        offset, moving_mean, moving_variance = (
            tf.convert_to_tensor(v.value)
            for v in (self.offset, self.moving_mean, self.moving_variance)
        )
        if training and (replicas.statistics_are_global() or not _has_kernel(inputs)):
            outputs, *batch = self._by_batch(inputs, offset)
            self._move(*batch)
            return outputs
        if inputs.dtype == tf.float64:
            # The fused kernel is for single and half precision.
            return tf.nn.batch_normalization(
                inputs, moving_mean, moving_variance, offset, None, self.epsilon
            )
        scale = tf.ones_like(offset)
        # While training the kernel normalises by the batch's statistics, and gives the moved ones.
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=scale,
            offset=offset,
            mean=moving_mean,
            variance=moving_variance,
            epsilon=self.epsilon,
            exponential_avg_factor=1 - self.momentum if training else 1.0,
            is_training=training,
        )
        if training:
            replicas.assign(self.moving_mean, mean)
            replicas.assign(self.moving_variance, variance)
        return outputs

    def _by_batch(
        self, inputs: tf.Tensor, offset: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns normalised inputs, and the batch's mean and unbiased variance, [C]."""
        if inputs.dtype == tf.float64 or replicas.statistics_are_global():
            values = tf.cast(inputs, offset.dtype)
            mean, variance, count = replicas.batch_moments(values, shift=self.moving_mean.value)
            outputs = tf.nn.batch_normalization(values, mean, variance, offset, None, self.epsilon)
            unbiased = variance * count / tf.maximum(count - 1, 1)
            return tf.cast(outputs, inputs.dtype), mean, unbiased
        return _normalize_rows(inputs, offset, self.epsilon)

    def _move(self, mean: tf.Tensor, variance: tf.Tensor) -> None:
        """Moves the moving statistics towards a batch's, each [C]."""
        for statistic, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            before = tf.convert_to_tensor(statistic.value)
            replicas.assign(statistic, before + (1 - self.momentum) * (batch - before))

    def factor_and_shift(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns f and s, [C], of `y = x * f + s`, what this is with `training=False`."""
        offset, mean, variance = (
            tf.convert_to_tensor(v.value)
            for v in (self.offset, self.moving_mean, self.moving_variance)
        )
        factor = tf.math.rsqrt(variance + self.epsilon)
        return factor, offset - mean * factor

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the shape of the output for that of an input."""
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Returns what `from_config` needs."""
        return {**super().get_config(), "momentum": self.momentum, "epsilon": self.epsilon}


def _has_kernel(images: tf.Tensor) -> bool:
    """Returns whether TensorFlow's fused kernel takes the images, and is fast."""
    return images.dtype != tf.float64 and images.shape[-1] % _VECTOR == 0


@tf.custom_gradient
def _normalize_rows(
    images: tf.Tensor, offset: tf.Tensor, epsilon: float
) -> tuple[tuple[tf.Tensor, tf.Tensor, tf.Tensor], Callable]:
    """Returns normalised images, [B, H, W, C], and mean and unbiased variance of the batch, [C].

    The rows of all images are a matrix of W * C columns, for few channels do not fill a vector.
    """
    shape = tf.shape(images)
    width, channels = shape[2], images.shape[-1]

    def as_rows(images: tf.Tensor) -> tf.Tensor:
        return tf.reshape(tf.cast(images, offset.dtype), [-1, width * channels])

    def as_images(rows: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.reshape(rows, shape), images.dtype)

    def total(rows: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.reshape(tf.reduce_sum(rows, 0), [width, channels]), 0)

    def along(values: tf.Tensor) -> tf.Tensor:
        return tf.tile(values, [width])

    count = tf.cast(tf.reduce_prod(shape[:3]), offset.dtype)
    rows = as_rows(images)
    mean = total(rows) / count
    rows -= along(mean)
    square = total(tf.square(rows))
    inverse_deviation = tf.math.rsqrt(square / count + epsilon)
    normalized = rows * along(inverse_deviation)

    def gradient(
        upstream: tf.Tensor, *of_statistics: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, None]:
        del of_statistics  # They only move the moving ones.
        upstream = as_rows(upstream)
        by_offset = total(upstream)
        by_scale = total(upstream * normalized)
        upstream -= along(by_offset / count) + normalized * along(by_scale / count)
        return as_images(upstream * along(inverse_deviation)), by_offset, None

    outputs = as_images(normalized + along(offset))
    return (outputs, mean, square / tf.maximum(count - 1, 1)), gradient
