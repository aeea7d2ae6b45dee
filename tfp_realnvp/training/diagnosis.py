"""Locates the first value of a training step that is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

__all__ = ["FiniteRecord", "NonFiniteLossError", "find_non_finite_variable"]


class NonFiniteLossError(ArithmeticError):
    """A training step gave a loss or gradient that is not finite. The weights were not changed.

    Attributes:
      step: the training step, counted from 0.
      part: the first part of the step whose values are not finite.
    """

    def __init__(self, step: int, part: str) -> None:
        super().__init__(
            f"the loss or its gradient is not finite at step {step}, first in {part}; the weights "
            "are those before that step. A smaller learning rate or gradient norm may help."
        )
        self.step = step
        self.part = part


class FiniteRecord:
    """Collects the parts of a step in the order of computation, and whether each is finite.

    A tensor counts as finite if its sum of squares is, which is a single operation.

    #### Example

    >>> import tensorflow as tf
    >>> from tfp_realnvp.training.diagnosis import FiniteRecord
    >>> record = FiniteRecord()
    >>> record.add('the data', tf.constant([1.0]))
    >>> record.add('the loss', tf.constant([1.0, float('nan')]))
    >>> record.names[int(tf.argmax(record.are_finite() < 1))]
    'the loss'
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._sums: list[tf.Tensor] = []

    def add(self, name: str, *tensors: tf.Tensor) -> None:
        """Appends the tensors of a part."""
        for tensor in tensors:
            self.names.append(name)
            self._sums.append(tf.nn.l2_loss(tensor))

    def add_bijector(self, bijector: Any, value: tf.Tensor, log_det: tf.Tensor) -> None:
        """Appends the result of a bijector: an observer for `nested.observe_inverse`."""
        self.add(f"the bijector {bijector.name}", value, log_det)

    def are_finite(self) -> tf.Tensor:
        """Returns 1 for each tensor that is finite and 0 for others, float32."""
        widest = max({each.dtype for each in self._sums}, key=lambda dtype: dtype.size)
        sums = tf.stack([tf.cast(each, widest) for each in self._sums])
        return tf.cast(tf.math.is_finite(sums), tf.float32)


def find_non_finite_variable(variables: Sequence[Any]) -> str | None:
    """Returns the path of the first variable with a value that is not finite, if there is one."""
    for variable in variables:
        if not bool(tf.reduce_all(tf.math.is_finite(tf.convert_to_tensor(variable)))):
            return variable.path
    return None
