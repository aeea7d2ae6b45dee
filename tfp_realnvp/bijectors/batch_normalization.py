"""Batch normalisation as a bijector, steady for small batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfp_realnvp import checks, replicas
from tfp_realnvp.bijectors.flow_bijector import FlowBijector

__all__ = ["BatchNormalization"]

_STATISTICS = ("running", "batch")


class BatchNormalization(FlowBijector):
    r"""Normalises each channel in the direction data -> latent, and undoes it in the other.

    With a mean μ and a variance σ² for each channel,

    ```
    inverse (data -> latent):  x = (y - μ) / sqrt(σ² + ε)
    forward (latent -> data):  y = x * sqrt(σ² + ε) + μ
    ildj = -H W / 2 * sum(log(σ² + ε)), the sum over channels
    ```

    The forward direction, and the inverse one with `training=False`, use the moving statistics
    μ̃, σ̃². With `training=True` the inverse first moves them towards the batch's μ̂, σ̂², taken over
    the batch and all positions,

    ```
    μ̃ <- ρ μ̃ + (1 - ρ) μ̂,    σ̃² <- ρ σ̃² + (1 - ρ) σ̂²
    ```

    and then normalises by the moved ones, gradients going through μ̂ and σ̂² only (Appendix E). The
    first step uses the batch alone. So training and evaluation normalise by nearly the same numbers
    also when batches are small. `statistics='batch'` gives plain batch normalisation, that is by
    μ̂ and σ̂² themselves while training. On several replicas the batch is that of them all within
    `replicas.global_statistics`, as in `FlowModel.fit`, and else that of each.

    #### Example

    >>> import tensorflow as tf
    >>> bijector = BatchNormalization(momentum=0.9)
    >>> y = tf.random.normal([64, 8, 8, 3], mean=5., stddev=2.)
    >>> x, ildj = bijector.inverse_and_log_det(y, training=True)   # the first step: the batch's
    >>> bool(abs(tf.math.reduce_std(x) - 1) < 1e-2), ildj.shape
    (True, TensorShape([64]))

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, section 3.7 and Appendix E.
    """

    def __init__(
        self,
        momentum: float = 0.9,
        *,
        num_channels: int | None = None,
        epsilon: float = 1e-4,
        statistics: str = "running",
        moving: MovingStatistics | None = None,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        name: str = "batch_normalization",
    ) -> None:
        """Constructs the bijector.

        Args:
          momentum: ρ, in [0, 1).
          num_channels: makes the moving statistics now; `None` makes them at the first call.
          epsilon: added to the variance, positive.
          statistics: `'running'` (Appendix E) or `'batch'`: what normalises while training.
          moving: the moving statistics, if they are to be shared with another bijector.
          dtype: `tf.float32` or `tf.float64`.
          validate_args: whether to look for values that are not finite.
          name: of the operations.

        Raises:
          ValueError: if `momentum`, `epsilon` or `statistics` is out of range.
          TypeError: if `dtype` is another one.
        """
        parameters = dict(locals())
        dtype = checks.float_dtype(dtype, name)
        checks.momentum(momentum, name)
        checks.positive(epsilon, f"{name}: expected a positive epsilon", dtype)
        checks.choice(statistics, _STATISTICS, f"{name}: expected statistics")
        if not (moving is None or isinstance(moving, MovingStatistics)):
            raise TypeError(f"{name}: expected MovingStatistics as moving, got {moving!r}.")
        if num_channels is not None:
            num_channels = checks.integer(num_channels, 1, f"{name}: expected num_channels from 1")
        with tf.name_scope(name):
            self._momentum = momentum
            self._epsilon = epsilon
            self._statistics = statistics
            # A copy shares the statistics, made or not.
            self._moving = MovingStatistics() if moving is None else moving
            parameters["moving"] = self._moving
            if num_channels is not None:
                self._moving.build(num_channels, dtype)
            super().__init__(
                dtype=dtype, validate_args=validate_args, parameters=parameters, name=name
            )

    @property
    def moving(self) -> MovingStatistics:
        """The moving statistics."""
        return self._moving

    @property
    def is_built(self) -> bool:
        """Whether the moving statistics were made."""
        return self._moving.mean is not None

    @property
    def variables_set_in_training(self) -> tuple[tf.Variable, ...]:
        """The moving statistics."""
        return tuple(self._moving.variables)

    def _check_event_shape(self, shape: tf.TensorShape, inverse: bool) -> None:
        channels = self._moving.num_channels
        if shape[-1] is None or channels not in (None, shape[-1]):
            raise ValueError(
                f"{self.name}: expected {channels or 'a known number of'} channels, got {shape}."
            )

    def _forward_and_log_det(self, x: tf.Tensor, **options: Any) -> tuple[tf.Tensor, tf.Tensor]:
        self._moving.build(x.shape[-1], self.dtype)
        variance = self._moving.variance + self._epsilon
        y = x * tf.sqrt(variance) + self._moving.mean
        return y, -self._inverse_log_det(x, variance)

    def _inverse_and_log_det(self, y: tf.Tensor, **options: Any) -> tuple[tf.Tensor, tf.Tensor]:
        self._moving.build(y.shape[-1], self.dtype)
        if options.get("training"):
            return self._normalize_batch(y)
        variance = self._moving.variance + self._epsilon
        x = (y - self._moving.mean) * tf.math.rsqrt(variance)
        return x, self._inverse_log_det(y, variance)

    def _normalize_batch(self, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # The gradient by hand: it needs no image but x, which the next bijector keeps anyhow.
        is_global = replicas.statistics_are_global()
        *batch, count = replicas.batch_moments(tf.stop_gradient(y), shift=self._moving.mean)
        *moved, weight = self._moving.move(*batch, momentum=self._momentum)
        if self._statistics == "batch":
            moved, weight = batch, tf.ones_like(weight)
        mean, variance = moved[0], moved[1] + self._epsilon
        inverse_std = tf.math.rsqrt(variance)

        @tf.custom_gradient
        def normalize(y: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable]:
            x = (y - mean) * inverse_std

            def gradient(by_x: tf.Tensor, by_ildj: tf.Tensor) -> tf.Tensor:
                axes = list(range(x.shape.rank - 1))
                positions = tf.cast(tf.reduce_prod(tf.shape(x)[-3:-1]), x.dtype)
                by_shift = tf.reduce_sum(by_x, axes)
                by_log_std = tf.reduce_sum(by_x * x, axes) + positions * tf.reduce_sum(by_ildj)
                if is_global:
                    both = tf.concat([by_shift, by_log_std], axis=0)
                    [both] = replicas.sum_over_replicas([both])
                    by_shift, by_log_std = tf.split(both, 2)
                # y - batch mean is x / inverse_std + mean - batch mean.
                share = weight / count
                slope = share * inverse_std**2 * by_log_std
                offset = share * inverse_std * by_shift + slope * (mean - batch[0])
                return by_x * inverse_std - x * (slope / inverse_std) - offset

            return (x, self._inverse_log_det(y, variance)), gradient

        return normalize(y)

    def _inverse_log_det(self, image: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
        shape = tf.shape(image)
        positions = tf.cast(shape[-3] * shape[-2], self.dtype)
        return tf.fill(shape[:-3], -0.5 * positions * tf.reduce_sum(tf.math.log(variance)))


class MovingStatistics(tf.Module):
    """The moving mean and variance of each channel, and the number of times they moved."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)
        self.mean = None
        self.variance = None
        self.num_updates = None

    @property
    def num_channels(self) -> int | None:
        """The number of channels; `None` before `build`."""
        return None if self.mean is None else self.mean.shape[0]

    def build(self, num_channels: int, dtype: Any) -> None:
        """Makes the variables, once: mean 0, variance 1."""
        if self.mean is not None:
            return
        with tf.init_scope():
            self.mean = _statistic(tf.zeros([num_channels], dtype), "moving_mean")
            self.variance = _statistic(tf.ones([num_channels], dtype), "moving_variance")
            self.num_updates = _statistic(tf.zeros([], dtype), "num_updates")

    def move(
        self, mean: tf.Tensor, variance: tf.Tensor, momentum: float
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Moves the statistics towards a batch's, and returns them and the weight of the batch."""
        # The first batch stands alone: there is nothing to average it with.
        kept = tf.where(self.num_updates > 0, tf.constant(momentum, mean.dtype), 0)
        moved = []
        for statistic, batch in ((self.mean, mean), (self.variance, variance)):
            value = kept * statistic + (1 - kept) * batch
            replicas.assign(statistic, value)
            moved.append(value)
        replicas.assign(self.num_updates, self.num_updates + 1)
        return *moved, 1 - kept


def _statistic(value: tf.Tensor, name: str) -> tf.Variable:
    mean = tf.VariableAggregation.MEAN
    return tf.Variable(value, trainable=False, name=name, aggregation=mean)
