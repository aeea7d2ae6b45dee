"""The processes of a multi-worker strategy."""

from __future__ import annotations

import tensorflow as tf

__all__ = ["broadcast_from_chief", "is_chief", "num_workers"]


def num_workers(strategy: tf.distribute.Strategy) -> int:
    """Returns the number of processes of a strategy.

    #### Example

    >>> import tensorflow as tf
    >>> from tfp_realnvp.training.workers import num_workers
    >>> num_workers(tf.distribute.get_strategy())
    1
    """
    if strategy.num_replicas_in_sync == 1:
        return 1
    return strategy.num_replicas_in_sync // len(strategy.extended.worker_devices)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether this process writes checkpoints and results.

    #### Example

    >>> import tensorflow as tf
    >>> from tfp_realnvp.training.workers import is_chief
    >>> is_chief(tf.distribute.get_strategy())
    True
    """
    return num_workers(strategy) == 1 or strategy.extended.should_checkpoint


def broadcast_from_chief(strategy: tf.distribute.Strategy, value: float) -> float:
    """Returns the chief's value on all workers. All workers have to make the same calls.

    #### Example

    >>> import tensorflow as tf
    >>> from tfp_realnvp.training.workers import broadcast_from_chief
    >>> broadcast_from_chief(tf.distribute.get_strategy(), 3.0)
    3.0
    """
    if num_workers(strategy) == 1:
        return value

    def share() -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        own = tf.where(tf.equal(context.replica_id_in_sync_group, 0), value, 0.0)
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(own, tf.float64))

    return float(strategy.experimental_local_results(strategy.run(share))[0])
