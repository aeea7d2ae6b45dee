"""What the result of a bijector depends on besides its input."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfp_realnvp.internal import private_api

__all__ = ["ComputationState"]


class ComputationState:
    """What a result depends on besides its input: values of variables, or position in a graph."""

    def __init__(self, bijector: Any) -> None:
        self._variables = bijector.state_variables
        if tf.executing_eagerly():
            # These are not copies: they share the variables' buffers, and the next assignment
            # writes to a new one.
            self._values = [tf.convert_to_tensor(variable) for variable in self._variables]
        else:
            self._num_operations = len(_operations())

    def holds(self, inputs: list[tf.Tensor], results: list[tf.Tensor]) -> bool:
        """Returns whether a result is valid for the next use: same values, same gradients."""
        if self._written_eagerly() if tf.executing_eagerly() else self._written_in_graph():
            return False
        if not private_api.could_possibly_record():
            return True
        if private_api.should_record_backprop(results):
            return True
        # An active tape did not record the result. It is valid if no tape would record a new one.
        trainable = any(variable.trainable for variable in self._variables)
        return not (trainable or private_api.should_record_backprop(inputs))

    def _written_eagerly(self) -> bool:
        return not all(
            _same_value(old, tf.convert_to_tensor(variable))
            for old, variable in zip(self._values, self._variables, strict=True)
        )

    def _written_in_graph(self) -> bool:
        """Returns whether a later operation of the graph may have written one of the variables.

        Every operation on the handle of a variable counts as a write, except a read.
        """
        handles = {id(handle) for variable in self._variables for handle in _handles(variable)}
        graph = tf.compat.v1.get_default_graph()
        captures = getattr(graph, "captures", ())
        captured = {inner.name for outer, inner in captures if id(outer) in handles}
        return any(
            id(tensor) in handles or tensor.name in captured
            for operation in _operations()[self._num_operations :]
            if operation.type != "ReadVariableOp"
            for tensor in operation.inputs
            if tensor.dtype == tf.resource
        )


def _operations() -> list[tf.Operation]:
    return tf.compat.v1.get_default_graph().get_operations()


def _handles(variable: tf.Variable) -> list[tf.Tensor]:
    try:
        return [variable.handle]
    except ValueError:
        # In the cross-replica context of a strategy, a variable has a copy for each replica.
        return [copy.handle for copy in variable.values]


def _same_value(old: tf.Tensor, new: tf.Tensor) -> bool:
    try:
        # On the CPU both are views, and a variable that was not written keeps its buffer.
        if np.asarray(memoryview(old)).ctypes.data == np.asarray(memoryview(new)).ctypes.data:
            return True
    except (BufferError, TypeError, ValueError):
        pass
    return bool(tf.reduce_all(tf.equal(old, new)))
