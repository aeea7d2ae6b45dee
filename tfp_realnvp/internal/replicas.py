"""Operations that make the replicas of a `tf.distribute.Strategy` compute as one device.

Without a strategy, or with one replica, they cost nothing.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfp_realnvp.internal import private_api

__all__ = [
    "BatchPart",
    "assert_not_empty",
    "assign",
    "at_least_one",
    "average",
    "batch_moments",
    "global_statistics",
    "local_moments",
    "num_replicas",
    "part_of_batch",
    "statistics_are_global",
    "statistics_are_weighted",
    "sum_over_replicas",
]


class _Statistics(NamedTuple):
    """Of which events batch statistics are, and with which weights."""

    are_global: bool = False
    weights: tf.Tensor | None = None


_LOCAL_STATISTICS = _Statistics()
_statistics: contextvars.ContextVar[_Statistics]
_statistics = contextvars.ContextVar("statistics", default=_LOCAL_STATISTICS)


def num_replicas() -> int:
    """Returns the number of replicas that run the current code, each on its part of the batch.

    It is 1 outside of a strategy and in a cross-replica context.

    #### Example

    >>> from tfp_realnvp.internal.replicas import num_replicas
    >>> num_replicas()
    1
    """
    if tf.distribute.in_cross_replica_context():
        return 1
    return tf.distribute.get_strategy().num_replicas_in_sync


@contextlib.contextmanager
def global_statistics(enabled: bool = True, weights: tf.Tensor | None = None) -> Iterator[None]:
    """Makes normalizations use the statistics of the batch of all replicas.

    `FlowModel.fit` does so. A custom training loop wraps the forward pass and its gradient, within
    the function that `strategy.run` runs. Each normalization then waits twice for the other
    replicas, to sum `2 C + 1` numbers forward and as many backward.

    #### Example

    >>> import tensorflow as tf
    >>> from tfp_realnvp.internal.replicas import batch_moments, global_statistics
    >>> strategy = tf.distribute.get_strategy()
    >>> def step(images):
    ...   with global_statistics():
    ...     return batch_moments(images, shift=tf.zeros([1]))[0]
    >>> float(strategy.run(step, args=[tf.constant([[1.0], [3.0]])])[0])
    2.0

    Args:
      enabled: `False` makes each replica use the statistics of its own part.
      weights: weights of the events [B] of this replica, whose statistics are weighted means.
    """
    token = _statistics.set(_Statistics(enabled, weights))
    try:
        yield
    finally:
        _statistics.reset(token)


def statistics_are_global() -> bool:
    """Returns whether batch statistics are currently taken over several replicas."""
    return _statistics.get().are_global and num_replicas() > 1


def statistics_are_weighted() -> bool:
    """Returns whether batch statistics are currently weighted means."""
    return _statistics.get().weights is not None


def batch_moments(images: tf.Tensor, shift: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the mean and variance of each channel over all other axes.

    Within `global_statistics` they are taken over all replicas, whose parts of the batch may have
    different sizes, or be empty. With weights of the events they are weighted means.

    #### Example

    >>> import tensorflow as tf
    >>> from tfp_realnvp.internal.replicas import batch_moments
    >>> mean, variance, count = batch_moments(tf.constant([[1.0], [3.0]]), shift=tf.zeros([1]))
    >>> float(mean[0]), float(variance[0]), int(count)
    (2.0, 1.0, 2)

    Args:
      images: [B, ..., C].
      shift: [C], the same on all replicas and near the mean, for example the moving mean. Distances
        from it and their squares are summed, which avoids cancellation.

    Returns:
      The mean and the biased variance, [C], and the number of values in each channel, or the sum of
      their weights.
    """
    axes = list(range(images.shape.rank - 1))
    weights = _statistics.get().weights
    if weights is None:
        count = tf.cast(tf.size(images, tf.int64) // images.shape[-1], images.dtype)
        weights = tf.ones([], images.dtype)
        if not statistics_are_global():
            return *local_moments(images, axes), count
    else:
        weights = tf.reshape(tf.cast(weights, images.dtype), [-1] + [1] * len(axes))
        count = tf.reduce_sum(weights * tf.ones_like(images[..., :1]))
    if not statistics_are_global():
        # Without a positive weight both are zero, and `FlowModel` does not make the step.
        mean = tf.math.divide_no_nan(tf.reduce_sum(weights * images, axes), count)
        square = weights * tf.math.squared_difference(images, mean)
        return mean, tf.math.divide_no_nan(tf.reduce_sum(square, axes), count), count
    shift = tf.stop_gradient(shift)
    distance = weights * (images - shift)
    sums = [count, tf.reduce_sum(distance, axes), tf.reduce_sum(distance * (images - shift), axes)]
    channels = images.shape[-1]
    # One message instead of three.
    summed = sum_over_replicas([tf.concat([sums[0][tf.newaxis], *sums[1:]], axis=0)])[0]
    count, mean, square = tf.split(summed, [1, channels, channels])
    count = tf.reshape(count, [])
    mean, square = tf.math.divide_no_nan(mean, count), tf.math.divide_no_nan(square, count)
    return mean + shift, tf.maximum(square - tf.square(mean), 0.0), count


def local_moments(images: tf.Tensor, axes: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the mean and the biased variance over the leading `axes`, on this replica.

    `tf.nn.moments` has wrong second derivatives: it treats the mean in the variance as a constant.

    #### Example

    >>> import tensorflow as tf
    >>> from tfp_realnvp.internal.replicas import local_moments
    >>> mean, variance = local_moments(tf.constant([1.0, 3.0]), [0])
    >>> float(mean), float(variance)
    (2.0, 1.0)
    """
    mean = tf.reduce_mean(images, axes)
    return mean, tf.reduce_mean(tf.math.squared_difference(images, mean), axes)


class BatchPart(NamedTuple):
    """A replica's part of a batch.

    Attributes:
      first: number of events of the replicas before this one; the Python integer 0 for one replica.
      total: number of events of all replicas, int32, or the sum of their weights.
    """

    first: tf.Tensor | int
    total: tf.Tensor


def part_of_batch(number: tf.Tensor, weights: tf.Tensor | None = None) -> BatchPart:
    """Returns this replica's part of the batch, given its number of events and their weights.

    #### Example

    >>> import tensorflow as tf
    >>> from tfp_realnvp.internal.replicas import part_of_batch
    >>> part = part_of_batch(tf.constant(4))
    >>> part.first, int(part.total)
    (0, 4)

    Args:
      number: number of events, int32.
      weights: of the events, [number], or `None`.
    """
    total_weight = None if weights is None else tf.reduce_sum(weights)
    if num_replicas() == 1:
        return BatchPart(0, number if weights is None else total_weight)
    context = tf.distribute.get_replica_context()
    replica = context.replica_id_in_sync_group
    # float32 is exact up to 2²⁴, and all devices can sum it.
    numbers = tf.one_hot(replica, num_replicas()) * tf.cast(number, tf.float32)
    numbers, *total_weights = sum_over_replicas(
        [numbers] if weights is None else [numbers, total_weight]
    )
    numbers = tf.cast(numbers, tf.int32)
    total = tf.reduce_sum(numbers) if weights is None else total_weights[0]
    return BatchPart(tf.reduce_sum(numbers[:replica]), total)


def assert_not_empty(values: tf.Tensor, caller: str) -> None:
    """Asserts that this replica's part of a batch is not empty; costs nothing with one replica."""
    if num_replicas() > 1:
        message = (
            f"{caller}: expected images for each replica, got a batch with fewer images than "
            "replicas; leave a smaller last batch out (drop_remainder=True)."
        )
        tf.debugging.assert_positive(tf.shape(values)[0], message)


def at_least_one(values: tf.Tensor) -> tf.Tensor:
    """Returns a replica's part of a batch, or zeros in place of an empty part.

    Convolutions of empty tensors fail. The caller leaves out the result of the zeros. With a single
    replica no part is empty, and nothing is computed.

    #### Example

    >>> import tensorflow as tf
    >>> from tfp_realnvp.internal.replicas import at_least_one
    >>> at_least_one(tf.ones([3, 2])).shape
    TensorShape([3, 2])

    Args:
      values: [B, ...].
    """
    if num_replicas() == 1:
        return values
    missing = tf.cast(tf.equal(tf.shape(values)[0], 0), tf.int32)
    filled = tf.pad(values, tf.stack([[0, missing], *[[0, 0]] * (values.shape.rank - 1)]))
    return tf.ensure_shape(filled, [None, *values.shape[1:]])


def sum_over_replicas(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Returns the sums of floating tensors over all replicas. Gradients flow through them.

    #### Example

    >>> import tensorflow as tf
    >>> from tfp_realnvp.internal.replicas import sum_over_replicas
    >>> [float(total) for total in sum_over_replicas([tf.constant(2.0)])]
    [2.0]
    """
    if num_replicas() == 1:
        return list(tensors)
    if not tensors:
        return []
    context = tf.distribute.get_replica_context()
    return list(context.all_reduce(tf.distribute.ReduceOp.SUM, list(tensors)))


def assign(variable: tf.Variable | keras.Variable, value: Any) -> None:
    """Assigns a value to this replica's copy of a variable.

    The method `assign` would average over replicas. The caller makes sure that all replicas assign
    the same value. Outside of a replica context, all copies get the value.

    #### Example

    >>> import tensorflow as tf
    >>> from tfp_realnvp.internal.replicas import assign
    >>> variable = tf.Variable(1.0)
    >>> assign(variable, 2.0)
    >>> float(variable)
    2.0
    """
    if isinstance(variable, keras.Variable) and isinstance(variable.value, tf.Variable):
        variable = variable.value
    # Within a `keras.StatelessScope`, `assign` of a Keras variable writes to the scope.
    if num_replicas() == 1 or not isinstance(variable, tf.Variable):
        variable.assign(value)
    else:
        private_api.assign_on_replica(variable, tf.convert_to_tensor(value, variable.dtype))


def average(variables: Sequence[tf.Variable]) -> None:
    """Assigns the mean over replicas to all copies of floating variables.

    #### Example

    >>> import tensorflow as tf
    >>> from tfp_realnvp.internal.replicas import average
    >>> average([tf.Variable(1.0)])
    """
    if num_replicas() == 1:
        return
    variables = [variable for variable in variables if variable.dtype.is_floating]
    summands = [variable / num_replicas() for variable in variables]
    for variable, value in zip(variables, sum_over_replicas(summands), strict=True):
        assign(variable, value)
