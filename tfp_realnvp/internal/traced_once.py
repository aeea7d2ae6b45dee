"""Functions that are traced once for all tensors of the same shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

__all__ = ["traced_once"]


def traced_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function` such that a call is one operation of a graph, and its gradient another.

    TensorFlow traces `function`, which has no variables, once for each list of shapes and dtypes.
    Graphs that call it for many tensors of equal shapes, such as the kernels of equal couplings,
    are traced faster.

    All shapes must be known, and constants made within. Otherwise the function would return shapes
    to its gradient, which XLA compiles as constants: it would compile again whenever a variable
    changes.
    """

    @functools.cache
    def traced(*signature: tf.TensorSpec) -> Callable[..., Any]:
        # A `tf.function` with traces of several shapes would cause a warning.
        return tf.function(function, signature, autograph=False).get_concrete_function()

    @functools.wraps(function)
    def call(*arguments: tf.Tensor | tf.Variable) -> Any:
        tensors = [tf.convert_to_tensor(argument) for argument in arguments]
        return traced(*(tf.TensorSpec(t.shape, t.dtype) for t in tensors))(*tensors)

    return call
