"""Communication between replicas and workers. With one replica, communication costs nothing."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfp_realnvp.internal import private_api


def num_replicas() -> int:
    """Returns the number of replicas that run the current code; 1 in a cross-replica context."""
    if tf.distribute.in_cross_replica_context():
        return 1
    return tf.distribute.get_strategy().num_replicas_in_sync


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """The events that batch statistics average over, and their weights."""

    # Whether to average over the batch of all replicas, as in `FlowModel.fit`, or over this
    # replica's part. If global, each normalization of C channels sums `2 C + 1` numbers over
    # replicas in the forward pass, and as many in the backward pass.
    are_global: bool = False
    weights: tf.Tensor | None = None  # of this replica's events, [B]

    @property
    def span_replicas(self) -> bool:
        """Whether statistics average over several replicas."""
        return self.are_global and num_replicas() > 1

    def moments(self, images: tf.Tensor, shift: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Returns mean and biased variance, [C]; weights are 1 by default.

        The replicas' parts [B, ..., C] may differ in size, or be empty. `shift`, [C], must be equal
        on all replicas. To avoid cancellation, `shift` should be near the mean.
        """
        axes = list(range(images.shape.rank - 1))
        if self.weights is None:
            if not self.span_replicas:
                # `tf.nn.moments` has wrong second derivatives: it treats the mean within the
                # variance as a constant. `keepdims=True` halves the operations of the gradient.
                mean = tf.reduce_mean(images, axes, keepdims=True)
                square = tf.math.squared_difference(images, mean)
                variance = tf.reduce_mean(square, axes, keepdims=True)
                return tf.reshape(mean, [-1]), tf.reshape(variance, [-1])
            weights = tf.ones([], images.dtype)
            count = tf.cast(tf.size(images, tf.int64) // images.shape[-1], images.dtype)
        else:
            weights = tf.reshape(tf.cast(self.weights, images.dtype), [-1] + [1] * len(axes))
            count = tf.reduce_sum(weights * tf.ones_like(images[..., :1]))
        if not self.span_replicas:
            # If all weights are zero, so are both sums, and `FlowModel` skips the step.
            mean = tf.math.divide_no_nan(tf.reduce_sum(weights * images, axes), count)
            square = weights * tf.math.squared_difference(images, mean)
            return mean, tf.math.divide_no_nan(tf.reduce_sum(square, axes), count)
        shift = tf.stop_gradient(shift)
        distance, channels = weights * (images - shift), images.shape[-1]
        mean = tf.reduce_sum(distance, axes)
        square = tf.reduce_sum(distance * (images - shift), axes)
        # Communicate once instead of three times.
        [summed] = sum_over_replicas([tf.concat([count[tf.newaxis], mean, square], axis=0)])
        count, mean, square = tf.split(summed, [1, channels, channels])
        count = tf.reshape(count, [])
        mean, square = tf.math.divide_no_nan(mean, count), tf.math.divide_no_nan(square, count)
        return mean + shift, tf.maximum(square - tf.square(mean), 0.0)


LOCAL_STATISTICS = Statistics()


class BatchPart(NamedTuple):
    """A replica's part of a batch."""

    first: tf.Tensor | int  # total number of events of the preceding replicas; 0 for one replica
    number: tf.Tensor  # number of events of all replicas, float32
    total: tf.Tensor  # `number`, or the sum of the weights of these events


def part_of_batch(number: tf.Tensor, weights: tf.Tensor | None = None) -> BatchPart:
    """Returns the `BatchPart` of this replica, given its number of events and their weights."""
    # Use float32, which all devices can sum; such sums are exact up to 2²⁴.
    number = tf.cast(number, tf.float32)
    total = number if weights is None else tf.reduce_sum(weights)
    if num_replicas() == 1:
        return BatchPart(0, number, total)
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    numbers = tf.one_hot(replica, num_replicas()) * number
    numbers, total = sum_over_replicas([numbers, total])
    first = tf.cast(tf.reduce_sum(numbers[:replica]), tf.int32)
    return BatchPart(first, tf.reduce_sum(numbers), total)


def assert_not_empty(values: tf.Tensor, caller: str) -> None:
    """Asserts that no replica's part of a batch is empty."""
    if num_replicas() > 1:
        message = f"{caller}: expected images for each replica, got a batch with fewer images than "
        message += "replicas; drop a smaller last batch by drop_remainder=True."
        tf.debugging.assert_positive(tf.shape(values)[0], message)


def sum_over_replicas(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Returns the sums of floating tensors over all replicas. Gradients flow through the sums."""
    if num_replicas() == 1:
        return list(tensors)
    context, sums = tf.distribute.get_replica_context(), dict[int, tf.Tensor]()
    # TensorFlow concatenates the tensors of a call, so each dtype needs its own call.
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        group = {i: tensor for i, tensor in enumerate(tensors) if tensor.dtype == dtype}
        summed = context.all_reduce(tf.distribute.ReduceOp.SUM, list(group.values()))
        sums |= zip(group, summed, strict=True)
    return [sums[i] for i in range(len(tensors))]


def assign(variable: tf.Variable | keras.Variable, value: Any) -> None:
    """Assigns a value, equal on all replicas, to this replica's copy of a variable.

    `variable.assign` would aggregate. In a cross-replica context, `assign` sets all copies.
    """
    if isinstance(variable, keras.Variable) and isinstance(variable.value, tf.Variable):
        variable = variable.value
    # Within a `keras.StatelessScope`, a Keras variable's `assign` writes to the scope.
    if num_replicas() == 1 or not isinstance(variable, tf.Variable):
        variable.assign(value)
    else:
        private_api.assign_on_replica(variable, tf.convert_to_tensor(value, variable.dtype))


def restore_unless(
    condition: tf.Tensor, variables: Sequence[tf.Variable], values: Sequence[tf.Tensor]
) -> None:
    """Assigns `values` to this replica's copies of variables, unless `condition` is true."""
    for variable, value in zip(variables, values, strict=True):
        assign(variable, tf.where(condition, variable, value))


def average(variables: Sequence[tf.Variable]) -> None:
    """Assigns the mean over replicas to floating variables."""
    if num_replicas() == 1:
        return
    variables = [variable for variable in variables if variable.dtype.is_floating]
    summands = [variable / num_replicas() for variable in variables]
    for variable, value in zip(variables, sum_over_replicas(summands), strict=True):
        assign(variable, value)


class ReplicatedMean(keras.metrics.Mean):
    """A `Mean` that all replicas update with the same values.

    To read another Keras metric, a worker sums over all replicas. A worker that saves the model
    alone would wait for the other workers forever.
    """

    def add_variable(self, *args: Any, **kwargs: Any) -> keras.Variable:
        """Creates a variable that workers read without communication."""
        return super().add_variable(*args, **{**kwargs, "aggregation": "only_first_replica"})


def check_scope(name: str, variables: Sequence[tf.Variable]) -> None:
    """Raises `ValueError` if a variable was created outside of the current strategy's scope."""
    strategy = tf.distribute.get_strategy()
    if not all(strategy.extended.variable_created_in_scope(variable) for variable in variables):
        raise ValueError(
            f"FlowModel: expected {name} from the scope of the model's {type(strategy).__name__}, "
            "got variables from another scope; construct distribution, model and optimizer in one "
            "`with strategy.scope()`."
        )


def num_workers(strategy: tf.distribute.Strategy) -> int:
    """Returns the number of processes of a strategy."""
    if strategy.num_replicas_in_sync == 1:
        return 1
    return strategy.num_replicas_in_sync // len(strategy.extended.worker_devices)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether this process writes checkpoints and results."""
    return num_workers(strategy) == 1 or strategy.extended.should_checkpoint


def broadcast_from_chief(strategy: tf.distribute.Strategy, value: float) -> float:
    """Returns the chief's value on all workers, all of which must make this call."""
    if num_workers(strategy) == 1:
        return value

    def share() -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        summand = tf.where(tf.equal(context.replica_id_in_sync_group, 0), value, 0.0)
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(summand, tf.float64))

    return float(strategy.experimental_local_results(strategy.run(share))[0])
