"""Batch normalization as a bijector, stable for small batches."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.bijectors.call_context import Pass
from tfp_realnvp.bijectors.channel_normalization import ChannelNormalization, ChannelVariables
from tfp_realnvp.internal import replicas, validation

__all__ = ["BatchNormalization"]

_STATISTICS = ("running", "batch")


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class MovingStatistics(ChannelVariables):
    """The moving mean and variance of each channel, and the number of updates."""

    def build(self, input_shape: Any) -> None:
        """Creates the variables."""
        super().build(input_shape)
        self.mean = self._add("moving_mean", [self.num_channels], trainable=False)
        self.variance = self._add("moving_variance", [self.num_channels], "ones", trainable=False)
        self.num_updates = self._add("num_updates", [], trainable=False)


class BatchNormalization(ChannelNormalization):
    r"""Batch normalization: the inverse direction normalizes each channel, and forward undoes this.

    With a mean μ and a variance σ² for each channel,

    ```
    inverse (data -> latent):  x = (y - μ) / sqrt(σ² + ε)
    forward (latent -> data):  y = x * sqrt(σ² + ε) + μ
    ildj = -H W / 2 * sum(log(σ² + ε)), the sum over channels
    ```

    The forward direction, and the inverse direction with `training=False`, use the moving
    statistics μ̃, σ̃². With `training=True` the inverse first updates them with the moments μ̂, σ̂²
    over the batch and all positions,

    ```
    μ̃ <- ρ μ̃ + (1 - ρ) μ̂,    σ̃² <- ρ σ̃² + (1 - ρ) σ̂²
    ```

    and then normalizes by the updated statistics, so that training and evaluation agree even for
    small batches. Gradients flow through μ̂ and σ̂² only (Appendix E). The first update uses ρ = 0.
    With `statistics='batch'` training normalizes by μ̂ and σ̂². Under a distribution strategy,
    `FlowModel.fit` computes the moments over all replicas, other code over one replica.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> bijector = tfr.BatchNormalization(momentum=0.9)
    >>> y = tf.random.normal([64, 8, 8, 3], mean=5., stddev=2.)
    >>> x, ildj = bijector.inverse_and_log_det(y, training=True)   # the first step
    >>> bool(abs(tf.math.reduce_std(x) - 1) < 1e-2), ildj.shape
    (True, TensorShape([64]))

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, section 3.7 and Appendix E.
    """

    _shared_argument = "moving"

    def __init__(
        self,
        momentum: float = 0.9,
        *,
        num_channels: int | None = None,
        epsilon: float = 1e-4,
        statistics: str = "running",
        moving: MovingStatistics | None = None,
        event_ndims: int = 3,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        name: str = "batch_normalization",
    ) -> None:
        """Constructs the bijector.

        Args:
          momentum: ρ, in [0, 1).
          num_channels: number of channels. With `None` the first call creates the variables.
          epsilon: added to the variance, positive.
          statistics: what training normalizes by, `'running'` (the updated moving statistics,
            Appendix E) or `'batch'`.
          moving: the variables of another `BatchNormalization`, to share them.
          event_ndims, dtype, validate_args, name: as in `FlowBijector`.

        Raises:
          TypeError, ValueError: if an argument has a wrong type, or is out of range.
        """
        parameters = dict(locals())
        if moving is None:
            moving = parameters["moving"] = MovingStatistics(
                validation.float_dtype(dtype, name), name
            )
        expected = f"{name}: expected statistics"
        self._statistics = validation.choice(statistics, _STATISTICS, expected)
        self._momentum = validation.fraction(momentum, f"{name}: expected a momentum in [0, 1)")
        super().__init__(moving, parameters)

    @property
    def moving(self) -> MovingStatistics:
        """The moving statistics."""
        return self._channels

    def _forward_and_log_det(self, x: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        self._channels.create(x.shape[-1])
        variance = self._channels.variance.value + self._epsilon
        y = x * tf.sqrt(variance) + self._channels.mean.value
        fldj = self._log_det_of_positions(x, 0.5 * tf.reduce_sum(tf.math.log(variance)), p)
        return y, fldj

    def _inverse_and_log_det(self, y: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        self._channels.create(y.shape[-1])
        if p.training:
            mean, variance = self._training_moments(y, p.statistics)
        else:
            mean = self._channels.mean.value
            variance = tf.convert_to_tensor(self._channels.variance.value)
        variance = variance + self._epsilon
        ildj = self._log_det_of_positions(y, -0.5 * tf.reduce_sum(tf.math.log(variance)), p)
        return (y - mean) * tf.math.rsqrt(variance), ildj

    def _training_moments(
        self, y: tf.Tensor, statistics: replicas.Statistics
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Updates the moving statistics, and returns the mean and variance to normalize by."""
        moving = self._channels
        before = [tf.convert_to_tensor(v.value) for v in (moving.mean, moving.variance)]
        num_updates = tf.convert_to_tensor(moving.num_updates.value)
        batch = statistics.moments(y, shift=before[0])[:2]
        # The first update replaces the initial values.
        momentum = tf.where(num_updates > 0, tf.constant(self._momentum, y.dtype), 0)
        updated = [
            momentum * old + (1 - momentum) * new for old, new in zip(before, batch, strict=True)
        ]
        replicas.assign(moving.mean, updated[0])
        replicas.assign(moving.variance, updated[1])
        replicas.assign(moving.num_updates, num_updates + 1)
        return tuple(batch if self._statistics == "batch" else updated)
