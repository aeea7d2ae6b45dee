"""Finds the first non-finite value of a training step, and skips the step."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfp_realnvp.bijectors import PixelLogit
from tfp_realnvp.internal import replicas
from tfp_realnvp.training.packing import Packing

_GRADIENT = "the gradient"


class _Expectation(str):
    """The name of a data check in a `FiniteRecord`, which is also its error message."""


class NonFiniteLossError(ArithmeticError):
    """The loss or a gradient of a training step was not finite; the weights did not change.

    Attributes:
      step: the training step, counted from 0.
      part: the first computation of the step with non-finite values, such as a bijector.
    """

    def __init__(self, step: int, part: str) -> None:
        advice = " A smaller learning rate or clipnorm may help."
        if step == 0:
            advice = " A larger batch may help: an `ActNorm` starts with its moments."
        if part.startswith(("the data", "the condition")):
            advice = ""
        super().__init__(
            f"the loss or its gradient is not finite at step {step}, first in {part}; the step "
            f"did not change the weights.{advice}"
        )
        self.step = step
        self.part = part


class FiniteRecord:
    """Records which tensors of a training step are finite, in the order of computation.

    A tensor counts as finite if its sum of squares is finite, which takes only one operation.
    """

    def __init__(self, checks: Sequence[tuple[tf.Tensor, str]] = ()) -> None:
        """Begins with checks of the data, pairs of a scalar `bool` and an error message.

        If a check fails, `FiniteGuard.raise_failure` raises its message.
        """
        self.names: list[str] = [_Expectation(message) for _, message in checks]
        self._sums = [tf.where(is_valid, 0.0, math.nan) for is_valid, _ in checks]
        self._graph = tf.compat.v1.get_default_graph()

    def add(self, name: str, *tensors: tf.Tensor) -> None:
        """Appends tensors under a name, except integers, which are always finite.

        Ignores tensors within a loop or another function, since the step cannot read them.
        """
        if tf.compat.v1.get_default_graph() is not self._graph:
            return
        sums = [tf.nn.l2_loss(tensor) for tensor in tensors if not tensor.dtype.is_integer]
        self.names += [name] * len(sums)
        self._sums += sums

    def add_bijector(self, bijector: Any, value: tf.Tensor, log_det: tf.Tensor) -> None:
        """Appends the result of a bijector. This method is the `observer` of a `Pass`."""
        part = f"the bijector {bijector.name}"
        if isinstance(bijector, PixelLogit):
            # `PixelLogit` has no variables, so non-finite results come from the data.
            part = f"the data, which has values outside of ({bijector.low:g}, {bijector.high:g})"
        # Skip a scalar log det, which is equal for all events: the check of the values suffices.
        self.add(part, value, *([log_det] if log_det.shape.rank else []))

    def are_finite(self) -> tf.Tensor:
        """Returns float32 numbers, 1 for a finite tensor and 0 for any other tensor."""
        if not self._sums:
            return tf.ones([0])
        widest = max({square.dtype for square in self._sums}, key=lambda dtype: dtype.size)
        sums = tf.stack([tf.cast(square, widest) for square in self._sums])
        return tf.cast(tf.math.is_finite(sums), tf.float32)


class FiniteGuard:
    """Prevents non-finite training steps from changing anything, and raises an error if one occurs.

    A step calls `check(...)` after computing its gradients. Later, outside of the graph,
    `raise_failure(...)` raises the error.
    """

    def __init__(self) -> None:
        # The first non-finite step, the index of its first non-finite name, and the position of the
        # first non-finite element in the packed gradients; -1, -1, -1 if all steps were finite.
        kind = tf.VariableAggregation.ONLY_FIRST_REPLICA
        self._failure = tf.Variable([-1, -1, -1], trainable=False, dtype=tf.int64, aggregation=kind)
        # Maps a name in a record to its index, which is the same in all graphs of a model.
        self._numbers: dict[str, int] = {}
        self._packing: Packing | None = None

    def check(
        self,
        step: tf.Tensor,
        record: FiniteRecord,
        are_finite: tf.Tensor,
        packing: Packing | None = None,
        gradients: Sequence[tf.Tensor] = (),
        total: Sequence[tf.Tensor] = (),
    ) -> tf.Tensor:
        """Returns whether to apply the step: a scalar `bool`, equal on all replicas.

        Stores the first non-finite step and returns false for that step and all later steps of the
        execution. `are_finite` is the mean of `record.are_finite()` over replicas. The packed
        `gradients` and the loss, `total`, are equal on all replicas.
        """
        record_of_sums = FiniteRecord()
        record_of_sums.add(_GRADIENT, *gradients)
        record_of_sums.add("the sum over the batch or the penalty", *total)
        are_finite = tf.concat([are_finite, record_of_sums.are_finite()], axis=0)
        names = record.names + record_of_sums.names
        numbers = [self._numbers.setdefault(name, len(self._numbers)) for name in names]
        self._packing = packing
        failure = tf.convert_to_tensor(self._failure)
        fails, failed_before = tf.reduce_any(are_finite < 1), failure[0] >= 0
        position = tf.constant(-1, tf.int64)
        if gradients:
            # Search for the non-finite element only after a failure.
            position = tf.cond(fails, lambda: _first_not_finite(gradients), lambda: position)
        part = tf.gather(tf.constant(numbers, tf.int64), tf.argmax(are_finite < 1))
        new_failure = tf.stack([step, part, position])
        is_first = fails & tf.logical_not(failed_before)
        replicas.assign(self._failure, tf.where(is_first, new_failure, failure))
        return tf.logical_not(fails | failed_before)

    def reset(self) -> None:
        """Clears the stored step."""
        self._failure.assign([-1, -1, -1])

    def raise_failure(self, variables_fn: Callable[[], Sequence[Any]] = list) -> None:
        """Raises an error, only once, if the values of a step were not finite.

        The error is a `ValueError` if the data failed a check, and
        otherwise a `NonFiniteLossError`, which can name the variable whose gradient is not finite.
        Only a failure calls `variables_fn`, since Keras collects variables slowly.
        """
        step, part, position = (int(value) for value in self._failure.numpy())
        if step < 0:
            return
        self.reset()
        name, variables = list(self._numbers)[part], variables_fn()
        if isinstance(name, _Expectation):
            raise ValueError(name)
        if name == _GRADIENT:
            name = f"{_GRADIENT} of {variables[self._packing.index_of(position)].path}"
        are_finite = [tf.math.is_finite(tf.convert_to_tensor(variable)) for variable in variables]
        broken = [v for v, f in zip(variables, are_finite, strict=True) if not tf.reduce_all(f)]
        if broken and not name.startswith("the data"):
            name = f"the variable {broken[0].path}"
        raise NonFiniteLossError(step, name)


def _first_not_finite(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns the position of the first non-finite element in the concatenated tensors."""
    are_finite = [tf.reshape(tf.math.is_finite(tensor), [-1]) for tensor in tensors]
    return tf.argmax(tf.logical_not(tf.concat(are_finite, axis=0)))
