"""Optimizer steps that are made under a condition."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from tfp_realnvp.internal import replicas
from tfp_realnvp.training.fused_adam import FusedAdam
from tfp_realnvp.training.packing import Group, Packing

__all__ = ["apply_if", "packing_of"]


def apply_if(
    condition: tf.Tensor,
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[tf.Tensor],
    packed: Sequence[tf.Tensor],
    packing: Packing,
    variables: Sequence[keras.Variable],
) -> None:
    """Applies gradients if a condition holds, and otherwise changes nothing, not even moments.

    With several replicas all make the same step. The gradients are sums over replicas, and are
    clipped by the norm of the sum.

    #### Example

    >>> import keras, tensorflow as tf
    >>> from tfp_realnvp.training.optimizers import apply_if, packing_of
    >>> variables, optimizer = [keras.Variable(1.0)], keras.optimizers.SGD(0.5)
    >>> optimizer.build(variables)
    >>> packing = packing_of(optimizer, variables)
    >>> gradients = [tf.constant(1.0)]
    >>> packed = packing.pack(gradients)
    >>> apply_if(tf.constant(False), optimizer, gradients, packed, packing, variables)
    >>> float(variables[0]), int(optimizer.iterations)
    (1.0, 0)

    Args:
      condition: a scalar `bool`, the same on all replicas.
      optimizer: any Keras optimizer, built.
      gradients: of `variables`, on this replica.
      packed: their sums over replicas, packed.
      packing: of `packing_of`.
      variables: those that the optimizer was built for.
    """
    if isinstance(optimizer, FusedAdam) and packing is optimizer.packing:
        optimizer.apply_packed(packed, condition)
        return
    if not tf.distribute.has_strategy():
        tf.cond(
            condition, lambda: _apply(optimizer, gradients, variables), lambda: tf.constant(False)
        )
        return
    gradients = packing.unpack(packed)
    # `apply` communicates, even with a single replica, which is not possible in a branch of a
    # `tf.cond`. The step is made, and undone where the condition does not hold.
    state = [variable.value for variable in (*variables, *optimizer.variables)]
    before = [tf.convert_to_tensor(variable) for variable in state]
    # `apply` sums the gradients over replicas again. They are sums already, so that only the first
    # replica passes them on, and the others pass zeros.
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    counts = condition & tf.equal(replica, 0)
    gradients = [tf.math.multiply_no_nan(g, tf.cast(counts, g.dtype)) for g in gradients]
    optimizer.apply(gradients, variables)
    for variable, value in zip(state, before, strict=True):
        replicas.assign(variable, tf.where(condition, variable, value))


def _apply(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[tf.Tensor],
    variables: Sequence[keras.Variable],
) -> tf.Tensor:
    optimizer.apply(gradients, variables)
    return tf.constant(True)


def packing_of(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]
) -> Packing:
    """Returns the packing of the gradients of `variables` that the optimizer takes.

    That is the packing of a `FusedAdam`, if it was built for all of these variables. Otherwise
    gradients of one dtype are packed as a vector, by which it is one operation to sum them over
    replicas and to find whether all are finite.
    """
    if isinstance(optimizer, FusedAdam) and optimizer.takes_packed(variables):
        return optimizer.packing
    return Packing([v.shape for v in variables], [Group(tf.as_dtype(v.dtype)) for v in variables])
