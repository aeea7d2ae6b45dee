"""Batch normalisation as a bijector, steady for small batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfp_realnvp import checks, replicas
from tfp_realnvp.bijectors.flow_bijector import FlowBijector
from tfp_realnvp.bijectors.recomputed_run import Pass, apply_run
from tfp_realnvp.groups import map_in_groups

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
        return y, -_inverse_log_det(x, variance)

    def _inverse_and_log_det(self, y: tf.Tensor, **options: Any) -> tuple[tf.Tensor, tf.Tensor]:
        if options.get("training"):
            x, [ildj] = apply_run([self.inverse_step], y)
            return x, ildj
        self._moving.build(y.shape[-1], self.dtype)
        variance = self._moving.variance + self._epsilon
        x = (y - self._moving.mean) * tf.math.rsqrt(variance)
        return x, _inverse_log_det(y, variance)

    def joins_run(self, **options: Any) -> bool:
        """Whether it normalises by batch statistics: then its gradient is its own."""
        return bool(options.get("training"))

    def inverse_step(self, y: tf.Tensor, **options: Any) -> tuple[tf.Tensor, tf.Tensor, Pass]:
        """Returns `x`, the log det and the way back, of a training pass."""
        self._moving.build(y.shape[-1], self.dtype)
        moving = (self._moving.mean, self._moving.variance, self._moving.num_updates)
        before = [tf.convert_to_tensor(variable) for variable in moving]
        axes = tuple(range(y.shape.rank - 1))
        is_global = replicas.statistics_are_global()

        def call(function: Callable[..., Any], *args: tf.Tensor, **static: Any) -> Any:
            # One function for all bijectors of a graph, but where replicas speak to each other:
            # that has to be in the graph itself.
            if is_global:
                return function(*args, axes=axes, **static)
            return map_in_groups(function, [args], axes=axes, **static)[0]

        def normalize(y: tf.Tensor) -> tuple[tf.Tensor, ...]:
            x, ildj, *others = call(
                _normalize,
                y,
                *before,
                *(replicas.batch_moments(y, shift=before[0]) if is_global else ()),
                momentum=self._momentum,
                epsilon=self._epsilon,
                by_batch=self._statistics == "batch",
            )
            x.set_shape(shape)
            ildj.set_shape(shape[:-3])
            return x, ildj, *others

        shape = y.shape
        x, ildj, *moved, mean, inverse_std, distance, share = normalize(y)
        for variable, value in zip(moving, moved, strict=True):
            value.set_shape(variable.shape)
            replicas.assign(variable, value)

        def repeat(y: tf.Tensor) -> tf.Tensor:
            return _normalized(y, mean, inverse_std)

        def gradient(
            by_x: tf.Tensor, by_ildj: tf.Tensor, y: tf.Tensor | None, x: tf.Tensor
        ) -> tuple[tf.Tensor, list[tf.Tensor], tf.Tensor | None]:
            # It needs no image but x, which the next bijector keeps anyhow.
            sums = [_sums(by_x, by_ildj, x, axes)] if is_global else []
            sums = replicas.sum_over_replicas(sums)
            by_y = call(_gradient, by_x, by_ildj, x, inverse_std, distance, share, *sums)
            by_y.set_shape(shape)
            return by_y, [], y

        return x, ildj, Pass(gradient, lambda y: normalize(y)[:2], repeat=repeat)


def _normalize(
    y: tf.Tensor,
    mean: tf.Tensor,
    variance: tf.Tensor,
    num_updates: tf.Tensor,
    *moments: tf.Tensor,
    axes: tuple[int, ...],
    momentum: float,
    epsilon: float,
    by_batch: bool,
) -> tuple[tf.Tensor, ...]:
    """Returns all that a training pass gives.

    Args:
      y: [..., C].
      mean: the moving one, [C].
      variance: likewise.
      num_updates: how often they moved.
      *moments: mean, variance and number of values of the batch; none for those of `y`.
      axes: all of `y` but the last.
      momentum: of the moving statistics.
      epsilon: added to the variance.
      by_batch: whether to normalise by the batch's moments, not by the moving ones.

    Returns:
      x and its ildj; mean, variance and number of updates, moved; and for the gradient the mean and
      1 / σ that it is normalised by, the distance of that mean from the batch's, and the share of
      each value of the batch in it.
    """
    if moments:
        batch_mean, batch_variance, count = moments
    else:
        batch_mean, batch_variance = replicas.local_moments(y, axes)
        count = tf.cast(tf.reduce_prod(tf.shape(y)[:-1]), y.dtype)
    # The first batch stands alone: there is nothing to average it with.
    kept = tf.where(num_updates > 0, tf.constant(momentum, y.dtype), 0)
    moved_mean = kept * mean + (1 - kept) * batch_mean
    moved_variance = kept * variance + (1 - kept) * batch_variance
    used_mean, used_variance, weight = moved_mean, moved_variance, 1 - kept
    if by_batch:
        used_mean, used_variance, weight = batch_mean, batch_variance, tf.ones_like(kept)
    used_variance += epsilon
    inverse_std = tf.math.rsqrt(used_variance)
    x = _normalized(y, used_mean, inverse_std)
    ildj = _inverse_log_det(y, used_variance)
    moved = moved_mean, moved_variance, num_updates + 1
    return x, ildj, *moved, used_mean, inverse_std, used_mean - batch_mean, weight / count


def _normalized(y: tf.Tensor, mean: tf.Tensor, inverse_std: tf.Tensor) -> tf.Tensor:
    return (y - mean) * inverse_std


def _gradient(
    by_x: tf.Tensor,
    by_ildj: tf.Tensor,
    x: tf.Tensor,
    inverse_std: tf.Tensor,
    distance: tf.Tensor,
    share: tf.Tensor,
    *sums: tf.Tensor,
    axes: tuple[int, ...],
) -> tf.Tensor:
    """Returns the gradient by y; `sums` are those of all replicas, none for those of this one."""
    by_shift, by_log_std = tf.unstack(sums[0] if sums else _sums(by_x, by_ildj, x, axes), num=2)
    # y - batch mean is x / inverse_std + distance.
    slope = share * inverse_std**2 * by_log_std
    offset = share * inverse_std * by_shift + slope * distance
    return by_x * inverse_std - x * (slope / inverse_std) - offset


def _sums(by_x: tf.Tensor, by_ildj: tf.Tensor, x: tf.Tensor, axes: tuple[int, ...]) -> tf.Tensor:
    """Returns the gradients by minus mean / σ and by minus log σ, [2, C]."""
    positions = tf.cast(tf.reduce_prod(tf.shape(x)[-3:-1]), x.dtype)
    by_shift = tf.reduce_sum(by_x, axes)
    by_log_std = tf.reduce_sum(by_x * x, axes) + positions * tf.reduce_sum(by_ildj)
    return tf.stack([by_shift, by_log_std])


def _inverse_log_det(image: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
    shape = tf.shape(image)
    positions = tf.cast(shape[-3] * shape[-2], image.dtype)
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


def _statistic(value: tf.Tensor, name: str) -> tf.Variable:
    mean = tf.VariableAggregation.MEAN
    return tf.Variable(value, trainable=False, name=name, aggregation=mean)
