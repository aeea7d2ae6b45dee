"""Models and values that the replicas and processes of a strategy share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

__all__ = ["ReplicatedMean", "broadcast_from_chief", "check_scope", "is_chief", "num_workers"]


class ReplicatedMean(keras.metrics.Mean):
    """A mean that all replicas update with the same values.

    Keras sums the replicas' values when a metric is read, which needs all workers: a worker that
    saves the model alone would wait forever.
    """

    def add_variable(self, *args: Any, **kwargs: Any) -> keras.Variable:
        """Creates a variable that is read without communication."""
        return super().add_variable(*args, **{**kwargs, "aggregation": "only_first_replica"})


def check_scope(name: str, variables: Sequence[tf.Variable]) -> None:
    """Raises `ValueError` if a variable was not created in the scope of the current strategy."""
    strategy = tf.distribute.get_strategy()
    if not all(strategy.extended.variable_created_in_scope(variable) for variable in variables):
        raise ValueError(
            f"FlowModel: expected {name} of the scope that the model is in, of "
            f"{type(strategy).__name__}, got variables of another: construct distribution, model "
            "and optimizer in one `with strategy.scope()`."
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
    """Returns the chief's value on all workers. All workers have to make the same calls."""
    if num_workers(strategy) == 1:
        return value

    def share() -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        summand = tf.where(tf.equal(context.replica_id_in_sync_group, 0), value, 0.0)
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(summand, tf.float64))

    return float(strategy.experimental_local_results(strategy.run(share))[0])
