"""Optimizer steps that are made only if they are finite."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from tfp_realnvp import replicas
from tfp_realnvp.fused_adam import FusedAdam

__all__ = ["apply_if_finite"]


def apply_if_finite(
    optimizer: keras.optimizers.Optimizer,
    loss: tf.Tensor,
    gradients: Sequence[tf.Tensor],
    variables: Sequence[keras.Variable],
) -> tf.Tensor:
    """Applies gradients if they and the loss are finite, or else changes nothing at all.

    On several replicas all make the same step, with gradients that were summed over them: the norm
    that clips them is that of the sum.

    #### Example

    >>> import keras
    >>> variable = keras.Variable(1.0)
    >>> optimizer = keras.optimizers.SGD(0.5)
    >>> gradient = keras.ops.convert_to_tensor(float('nan'))
    >>> bool(apply_if_finite(optimizer, gradient, [gradient], [variable])), float(variable)
    (False, 1.0)

    Args:
      optimizer: any of Keras.
      loss: a scalar, the same on all replicas.
      gradients: of `variables`, the same on all replicas.
      variables: those that the optimizer was built for.

    Returns:
      A scalar `bool` tensor: whether all was finite.
    """
    if isinstance(optimizer, FusedAdam) and optimizer.applies_if_finite:
        return optimizer.apply_if_finite(loss, gradients, variables)
    is_finite = tf.math.is_finite(tf.linalg.global_norm([loss, *gradients]))
    if replicas.num_replicas() > 1:
        return _apply_on_replicas(optimizer, is_finite, gradients, variables)

    def apply() -> tf.Tensor:
        optimizer.apply(gradients, variables)
        return tf.constant(True)

    return tf.cond(is_finite, apply, lambda: tf.constant(False))


def _apply_on_replicas(
    optimizer: keras.optimizers.Optimizer,
    is_finite: tf.Tensor,
    gradients: Sequence[tf.Tensor],
    variables: Sequence[keras.Variable],
) -> tf.Tensor:
    # Keras waits for the other replicas within `apply`, which no branch may hold: what was to be
    # left out is undone.
    state = [variable.value for variable in (*variables, *optimizer.variables)]
    before = [tf.identity(variable) for variable in state]
    # And it sums over replicas, once more: one of them gives the sum, the others zeros.
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    counts = is_finite & tf.equal(replica, 0)
    gradients = [tf.math.multiply_no_nan(g, tf.cast(counts, g.dtype)) for g in gradients]
    optimizer.apply(gradients, variables)
    for variable, value in zip(state, before, strict=True):
        replicas.assign(variable, tf.where(is_finite, variable, value))
    return is_finite
