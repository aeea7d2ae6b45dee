"""Functions that are traced once for all tensors of the same shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

__all__ = ["traced_once"]


def traced_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function whose call is one operation of a graph, and one of its gradient.

    TensorFlow traces `function` once for each list of shapes and dtypes. A graph that calls it for
    many variables of the same shapes, such as the kernels of equal couplings, is traced faster.

    All shapes have to be known, and constants are made within. Otherwise the function would return
    shapes to its gradient. XLA compiles shapes, and the values that they depend on, as constants:
    it would compile again whenever a variable changes.

    #### Example

    >>> import tensorflow as tf
    >>> from tfp_realnvp.internal.traced_once import traced_once
    >>> sum_of_squares = traced_once(lambda x: tf.reduce_sum(x * x))
    >>> float(sum_of_squares(tf.constant([3.0, 4.0])))
    25.0

    Args:
      function: a function of tensors, without variables of its own.
    """

    @functools.cache
    def traced(*signature: tf.TensorSpec) -> Callable[..., Any]:
        # As a concrete function, since TensorFlow takes the traces of several shapes for a mistake,
        # and warns of it.
        return tf.function(function, signature, autograph=False).get_concrete_function()

    @functools.wraps(function)
    def call(*arguments: tf.Tensor | tf.Variable) -> Any:
        tensors = [tf.convert_to_tensor(argument) for argument in arguments]
        return traced(*(tf.TensorSpec(t.shape, t.dtype) for t in tensors))(*tensors)

    return call
