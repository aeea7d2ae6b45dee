"""Tensors of many shapes as a few large ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

__all__ = ["Group", "Packing"]


class Group(NamedTuple):
    """What the tensors that are packed into one have in common.

    Attributes:
      dtype: of the tensors.
      element_shape: shape of the elements that are concatenated, `()` for numbers.
      decays: whether the variables of these shapes have weight decay.
      single: index of the only tensor, which is left as it is; or `None`.
    """

    dtype: tf.DType
    element_shape: tuple[int, ...] = ()
    decays: bool = False
    single: int | None = None


class Packing:
    """Packs the tensors of each group into one, [N, *element_shape], or leaves a single one.

    An optimizer runs few operations on packed gradients, instead of several on each of them.

    #### Example

    >>> import tensorflow as tf
    >>> from tfp_realnvp.training.packing import Group, Packing
    >>> numbers, matrices = Group(tf.float32), Group(tf.float32, element_shape=(2, 2))
    >>> packing = Packing([(), (3,), (2, 2)], [numbers, numbers, matrices])
    >>> packed = packing.pack([tf.zeros([]), tf.ones([3]), tf.eye(2)])
    >>> [tensor.shape.as_list() for tensor in packed]
    [[4], [1, 2, 2]]
    >>> [tensor.shape.as_list() for tensor in packing.unpack(packed)]
    [[], [3], [2, 2]]

    Attributes:
      groups: the groups, each once.
      indices: for each group the indices of its tensors.
    """

    def __init__(self, shapes: Sequence[Sequence[int]], groups: Sequence[Group]) -> None:
        """Constructs the packing.

        Args:
          shapes: of the tensors.
          groups: of the tensors, one for each.
        """
        self.groups = list(dict.fromkeys(groups))
        self.indices = [[i for i, g in enumerate(groups) if g == group] for group in self.groups]
        self._shapes = [tuple(shape) for shape in shapes]

    @property
    def packed_shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the packed tensors."""
        return [
            (sum(self._numbers(i)), *group.element_shape)
            if group.single is None
            else self._shapes[group.single]
            for i, group in enumerate(self.groups)
        ]

    def pack(self, tensors: Sequence[Any]) -> list[tf.Tensor]:
        """Returns the packed tensor of each group."""
        return [self.pack_group(i, tensors) for i in range(len(self.groups))]

    def pack_group(self, group: int, tensors: Sequence[Any]) -> tf.Tensor:
        """Returns the packed tensor of one group, by its index, given the tensors of all groups."""
        if (single := self.groups[group].single) is not None:
            return tf.convert_to_tensor(tensors[single])
        element_shape = self.groups[group].element_shape
        shape, rank = tf.constant([-1, *element_shape]), 1 + len(element_shape)
        parts = [
            tensors[i]
            if len(self._shapes[i]) == rank and self._shapes[i][1:] == element_shape
            else tf.reshape(tensors[i], shape)
            for i in self.indices[group]
        ]
        return tf.concat(parts, axis=0)

    def unpack(self, packed: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Returns all tensors, given the packed tensor of each group."""
        tensors: dict[int, tf.Tensor] = {}
        for group, tensor in enumerate(packed):
            parts = self.unpack_group(group, tensor)
            tensors |= zip(self.indices[group], parts, strict=True)
        return [tensors[i] for i in range(len(tensors))]

    def unpack_group(self, group: int, packed: tf.Tensor) -> list[tf.Tensor]:
        """Returns the tensors of one group, by its index, given its packed tensor."""
        if self.groups[group].single is not None:
            return [packed]
        parts = tf.split(packed, self._numbers(group))
        shapes = [self._shapes[i] for i in self.indices[group]]
        # One constant for all tensors of a shape.
        constants = {shape: tf.constant(shape, tf.int32) for shape in set(shapes)}
        return [
            part if part.shape == shape else tf.reshape(part, constants[shape])
            for part, shape in zip(parts, shapes, strict=True)
        ]

    def index_of(self, position: int) -> int:
        """Returns the index of the tensor that has an element of the packed tensors.

        Args:
          position: of the element in all packed tensors, one after the other.
        """
        indices = [i for group in self.indices for i in group]
        ends = itertools.accumulate(math.prod(self._shapes[i]) for i in indices)
        return next(i for i, end in zip(indices, ends, strict=True) if position < end)

    def _numbers(self, group: int) -> list[int]:
        """Returns the number of elements in each tensor of a group."""
        size = math.prod(self.groups[group].element_shape)
        return [math.prod(self._shapes[i]) // size for i in self.indices[group]]
