"""Packs the gradients of many variables into a few tensors, and applies them if a condition holds.

TensorFlow needs time to trace and to run each operation. Therefore a training step sums, checks and
applies a few packed tensors instead of hundreds of gradients.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfp_realnvp.internal import replicas


class Group(NamedTuple):
    """The common properties of tensors that are packed into one tensor."""

    dtype: tf.DType
    element_shape: tuple[int, ...] = ()  # of the elements that are concatenated, `()` for numbers
    decays: bool = False  # whether the variables have weight decay
    large_variable: int | None = None  # index of a variable that is too large to be packed


class Packing:
    """Packs the tensors of each group into one tensor, [N, *element_shape].

    An optimizer then runs a few operations per group, instead of per variable.
    """

    def __init__(self, shapes: Sequence[Sequence[int]], groups: Sequence[Group]) -> None:
        """Constructs the packing, given the shape and the group of each tensor."""
        self.groups = list(dict.fromkeys(groups))
        # For each group, the indices of its tensors.
        self.indices = [[i for i, g in enumerate(groups) if g == group] for group in self.groups]
        self._shapes = [tuple(shape) for shape in shapes]

    @property
    def packed_shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the packed tensors."""
        return [(sum(self._numbers(i)), *g.element_shape) for i, g in enumerate(self.groups)]

    def pack(self, tensors: Sequence[Any]) -> list[tf.Tensor]:
        """Returns the packed tensor of each group."""
        return [self.pack_group(i, tensors) for i in range(len(self.groups))]

    def pack_group(self, group: int, tensors: Sequence[Any]) -> tf.Tensor:
        """Packs the tensors of the group with index `group`, out of the tensors of all groups."""
        element_shape = self.groups[group].element_shape
        shape, rank = tf.constant([-1, *element_shape]), 1 + len(element_shape)
        parts = [
            tensors[i]
            if len(self._shapes[i]) == rank and self._shapes[i][1:] == element_shape
            else tf.reshape(tensors[i], shape)
            for i in self.indices[group]
        ]
        return tf.concat(parts, axis=0) if len(parts) > 1 else tf.convert_to_tensor(parts[0])

    def unpack(self, packed: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Returns all tensors, given the packed tensor of each group."""
        tensors: dict[int, tf.Tensor] = {}
        for group, tensor in enumerate(packed):
            tensors |= zip(self.indices[group], self.unpack_group(group, tensor), strict=True)
        return [tensors[i] for i in range(len(tensors))]

    def unpack_group(self, group: int, packed: tf.Tensor) -> list[tf.Tensor]:
        """Returns the tensors of the group with index `group`, given its packed tensor."""
        numbers = self._numbers(group)
        parts = tf.split(packed, numbers) if len(numbers) > 1 else [packed]
        shapes = [self._shapes[i] for i in self.indices[group]]
        # Tensors of the same shape share a constant.
        constants = {shape: tf.constant(shape, tf.int32) for shape in set(shapes)}
        return [
            part if part.shape == shape else tf.reshape(part, constants[shape])
            for part, shape in zip(parts, shapes, strict=True)
        ]

    def index_of(self, position: int) -> int:
        """Returns the index of the tensor that contains a position in the packed tensors."""
        indices = [i for group in self.indices for i in group]
        ends = itertools.accumulate(math.prod(self._shapes[i]) for i in indices)
        return next(i for i, end in zip(indices, ends, strict=True) if position < end)

    def _numbers(self, group: int) -> list[int]:
        size = math.prod(self.groups[group].element_shape)
        return [math.prod(self._shapes[i]) // size for i in self.indices[group]]


def apply_if(
    condition: tf.Tensor,
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[tf.Tensor],
    packed: Sequence[tf.Tensor],
    packing: Packing,
    variables: Sequence[keras.Variable],
) -> None:
    """Applies gradients if `condition` is true; otherwise changes nothing, not even moments.

    All replicas apply the sum of their gradients, clipped by the norm of the sum. `gradients`
    belong to this replica; `packed` are the sums over replicas, packed by `packing`.
    """
    if packing is getattr(optimizer, "packing", None):
        optimizer.apply_packed(packed, condition)
        return
    if not tf.distribute.has_strategy():

        def apply() -> tf.Tensor:
            optimizer.apply(gradients, variables)
            return tf.constant(True)

        tf.cond(condition, apply, lambda: tf.constant(False))
        return
    gradients = packing.unpack(packed)
    # `optimizer.apply` runs a collective operation, even with a single replica, which `tf.cond`
    # does not allow. Therefore always make the step, and undo it if `condition` is false.
    state = [variable.value for variable in (*variables, *optimizer.variables)]
    # Within a step, the learning rate can be a tensor; see `RateFactors`.
    state = [variable for variable in state if isinstance(variable, tf.Variable)]
    before = [tf.convert_to_tensor(variable) for variable in state]
    # `optimizer.apply` sums the gradients over replicas again. The gradients are sums already, so
    # only the first replica passes them, and the others pass zeros.
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    counts = condition & tf.equal(replica, 0)
    gradients = [tf.math.multiply_no_nan(g, tf.cast(counts, g.dtype)) for g in gradients]
    optimizer.apply(gradients, variables)
    replicas.restore_unless(condition, state, before)


def packing_of(optimizer: Any, variables: Sequence[keras.Variable]) -> Packing:
    """Returns the packing of the gradients of `variables`.

    A `FusedAdam` that was built for these variables has its own packing. For other optimizers, all
    gradients of a dtype form one vector.
    """
    takes_packed = getattr(optimizer, "takes_packed", None)
    if takes_packed is not None and takes_packed(variables):
        return optimizer.packing
    return Packing([v.shape for v in variables], [Group(tf.as_dtype(v.dtype)) for v in variables])
