"""What the replicas of a `tf.distribute.Strategy` do together, so that they are as one device.

Without a strategy, or with one replica, all of it costs nothing.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

__all__ = [
    "BatchPart",
    "assign",
    "average",
    "batch_moments",
    "global_statistics",
    "is_chief",
    "local_moments",
    "num_replicas",
    "num_workers",
    "part_of_batch",
    "statistics_are_global",
    "sum_over_replicas",
    "value_of_chief",
]

_statistics_are_global: contextvars.ContextVar[bool]
_statistics_are_global = contextvars.ContextVar("statistics_are_global", default=False)


def num_replicas() -> int:
    """Returns the number of replicas that compute what is written here, each for its own part.

    One between replicas and outside of a strategy, where there are no parts.

    #### Example

    >>> num_replicas()
    1
    """
    if tf.distribute.in_cross_replica_context():
        return 1
    return tf.distribute.get_strategy().num_replicas_in_sync


@contextlib.contextmanager
def global_statistics(enabled: bool = True) -> Iterator[None]:
    """Lets batch normalisation normalise by the batch of all replicas, not by that of its own.

    `FlowModel.fit` does this. In a training loop of one's own it goes around the forward pass and
    its gradient, within the function that `strategy.run` runs. Each normalisation then waits twice
    for the other replicas, to sum `2 C + 1` numbers forward and as many backward.

    #### Example

    >>> import tensorflow as tf
    >>> strategy = tf.distribute.get_strategy()
    >>> def step(images):
    ...   with global_statistics():
    ...     return batch_moments(images, shift=tf.zeros([1]))[0]
    >>> float(strategy.run(step, args=[tf.constant([[1.0], [3.0]])])[0])
    2.0

    Args:
      enabled: `False` leaves each replica to its own part of the batch.
    """
    token = _statistics_are_global.set(enabled)
    try:
        yield
    finally:
        _statistics_are_global.reset(token)


def statistics_are_global() -> bool:
    """Returns whether batch statistics are those of several replicas, here and now."""
    return _statistics_are_global.get() and num_replicas() > 1


def batch_moments(images: tf.Tensor, shift: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the mean and variance of each channel over all other axes, and over replicas.

    The latter within `global_statistics`: from the sums of all replicas, so that replicas may have
    parts of different size, or none.

    #### Example

    >>> import tensorflow as tf
    >>> mean, variance, count = batch_moments(tf.constant([[1.0], [3.0]]), shift=tf.zeros([1]))
    >>> float(mean[0]), float(variance[0]), int(count)
    (2.0, 1.0, 2)

    Args:
      images: [..., C].
      shift: [C], the same on all replicas, and best near the mean, for example the moving one: the
        squares that are summed are those of the distance from it, so that little cancels.

    Returns:
      The mean and the biased variance, [C], and the number of values that went into each.
    """
    axes = list(range(images.shape.rank - 1))
    count = tf.cast(tf.reduce_prod(tf.shape(images)[:-1]), images.dtype)
    if not statistics_are_global():
        return *local_moments(images, axes), count
    shift = tf.stop_gradient(shift)
    distance = images - shift
    sums = [count, tf.reduce_sum(distance, axes), tf.reduce_sum(tf.square(distance), axes)]
    channels = images.shape[-1]
    # One message instead of three.
    summed = sum_over_replicas([tf.concat([sums[0][tf.newaxis], *sums[1:]], axis=0)])[0]
    count, mean, square = tf.split(summed, [1, channels, channels])
    count = tf.reshape(count, [])
    mean, square = mean / count, square / count
    return mean + shift, tf.maximum(square - tf.square(mean), 0.0), count


def local_moments(images: tf.Tensor, axes: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the mean and the biased variance over `axes`, the first ones, of this replica.

    `tf.nn.moments` has wrong second derivatives: it takes the mean in the variance for a constant.

    #### Example

    >>> import tensorflow as tf
    >>> mean, variance = local_moments(tf.constant([1.0, 3.0]), [0])
    >>> float(mean), float(variance)
    (2.0, 1.0)
    """
    mean = tf.reduce_mean(images, axes)
    return mean, tf.reduce_mean(tf.math.squared_difference(images, mean), axes)


class BatchPart(NamedTuple):
    """A replica's part of a batch.

    Attributes:
      first: number of images of the replicas before this one; the Python integer 0 for one replica.
      total: number of images of all replicas, int32.
    """

    first: tf.Tensor | int
    total: tf.Tensor


def part_of_batch(number: tf.Tensor) -> BatchPart:
    """Returns what part of the batch a replica has, if it has `number` images.

    #### Example

    >>> part = part_of_batch(tf.constant(4))
    >>> part.first, int(part.total)
    (0, 4)
    """
    if num_replicas() == 1:
        return BatchPart(0, number)
    context = tf.distribute.get_replica_context()
    replica = context.replica_id_in_sync_group
    # Exact: a float32 counts up to 2²⁴, and all devices can sum it.
    own = tf.one_hot(replica, num_replicas()) * tf.cast(number, tf.float32)
    numbers = tf.cast(sum_over_replicas([own])[0], tf.int32)
    return BatchPart(tf.reduce_sum(numbers[:replica]), tf.reduce_sum(numbers))


def sum_over_replicas(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Returns the sums of floating tensors over all replicas, on each; differentiable.

    #### Example

    >>> [float(each) for each in sum_over_replicas([tf.constant(2.0)])]
    [2.0]
    """
    if num_replicas() == 1:
        return list(tensors)
    if not tensors:
        return []
    context = tf.distribute.get_replica_context()
    return list(context.all_reduce(tf.distribute.ReduceOp.SUM, list(tensors)))


def assign(variable: tf.Variable | keras.Variable, value: Any) -> None:
    """Gives a replica's own copy of a variable a value, without a word to other replicas.

    The method `assign` takes the mean over replicas, or refuses. Whoever calls this sees to it that
    all replicas end with the same value. Outside a replica, all copies get the value.

    #### Example

    >>> import tensorflow as tf
    >>> variable = tf.Variable(1.0)
    >>> assign(variable, 2.0)
    >>> float(variable)
    2.0
    """
    if num_replicas() == 1:
        variable.assign(value)
        return
    value = tf.convert_to_tensor(value, variable.dtype)
    if isinstance(variable, keras.Variable):
        variable = variable.value
    # In a replica, the handle is that of its copy.
    tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)


def average(variables: Sequence[tf.Variable]) -> None:
    """Gives all copies of floating variables the mean of the replicas' copies.

    #### Example

    >>> import tensorflow as tf
    >>> average([tf.Variable(1.0)])
    """
    if num_replicas() == 1:
        return
    variables = [variable for variable in variables if variable.dtype.is_floating]
    own = [variable / num_replicas() for variable in variables]
    for variable, value in zip(variables, sum_over_replicas(own), strict=True):
        assign(variable, value)


def num_workers(strategy: tf.distribute.Strategy) -> int:
    """Returns the number of processes that train together.

    #### Example

    >>> num_workers(tf.distribute.get_strategy())
    1
    """
    if strategy.num_replicas_in_sync == 1:
        return 1
    return strategy.num_replicas_in_sync // len(strategy.extended.worker_devices)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether this process is the one that writes files.

    #### Example

    >>> is_chief(tf.distribute.get_strategy())
    True
    """
    return num_workers(strategy) == 1 or strategy.extended.should_checkpoint


def value_of_chief(strategy: tf.distribute.Strategy, value: float) -> float:
    """Returns the chief's value, on all workers: each has to call this as often as the others.

    #### Example

    >>> value_of_chief(tf.distribute.get_strategy(), 3.0)
    3.0
    """
    if num_workers(strategy) == 1:
        return value

    def share() -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        own = tf.where(tf.equal(context.replica_id_in_sync_group, 0), value, 0.0)
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(own, tf.float64))

    return float(strategy.experimental_local_results(strategy.run(share))[0])
