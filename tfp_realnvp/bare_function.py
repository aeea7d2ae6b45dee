"""Traced functions of which nothing is kept but what runs."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import function_pb2
from tensorflow.python.eager import context
from tensorflow.python.eager.polymorphic_function import atomic_function

from tfp_realnvp.graph_optimizer import no_graph_optimizer
from tfp_realnvp.packed_handles import pack_handles

__all__ = ["BareFunction"]


class BareFunction:
    """A function of tensors and of what consists of tensors, traced at once, and not again.

    `tf.function` keeps the graph that Python traced, beside those that TensorFlow makes of it to
    run it. It is of use to who differentiates or exports the function; for a training step of
    hundreds of variables it takes as much memory as the others. Here it is gone before the first
    call.

    #### Example

    >>> import tensorflow as tf
    >>> weight = tf.Variable(2.0)
    >>> times_weight = BareFunction(lambda x: {'product': weight * x}, tf.constant(3.0))
    >>> float(times_weight(tf.constant(3.0))['product'])
    6.0
    >>> _ = weight.assign(5.0)
    >>> float(times_weight(tf.constant(3.0))['product'])
    15.0
    """

    def __init__(
        self, function: Callable[..., Any], *arguments: Any, optimized: bool = True
    ) -> None:
        """Traces the function.

        Args:
          function: called once. Gradient tapes do not see what it does when it is called.
          *arguments: examples of what it will be called with, or specifications.
          optimized: whether TensorFlow may optimise its graph; the functions that it calls are
            optimised in any case. If not, errors do not tell where in Python the operations of this
            graph were made, only those of such functions.
        """
        traced = tf.function(function, autograph=False).get_concrete_function(*arguments)
        runs = traced.inference_fn
        name, self._captured = runs.name, list(traced.captured_inputs)
        if not optimized:
            name, self._captured = _registered_with_less(runs.definition, self._captured)
        # A copy, which says nothing of what is captured: that is some objects for each variable.
        function_type = runs.function_type.replace()
        # It owns what is registered to run by that name, not the graph that it was made of.
        self._function = atomic_function.AtomicFunction(
            name, context.context(), function_type, runs.children, runs.call_options
        )
        self._optimized = optimized
        del traced, runs
        # Graphs are full of cycles. What comes next, the first call, needs the room.
        gc.collect()
        _return_free_memory()

    def __call__(self, *arguments: Any) -> Any:
        """Returns what the function returns for these arguments."""
        tensors = tf.nest.flatten(arguments, expand_composites=True)
        optimizer = contextlib.nullcontext() if self._optimized else no_graph_optimizer()
        with optimizer, atomic_function.InterpolateRuntimeError(self._function):
            outputs = context.context().call_function(
                self._function.name,
                [*tensors, *self._captured],
                len(self._function.function_type.flat_outputs),
            )
        return self._function.function_type.pack_output(outputs)


def _registered_with_less(
    definition: function_pb2.FunctionDef, captured: list[tf.Tensor]
) -> tuple[str, list[tf.Tensor]]:
    """Registers the function again, and returns its new name and what it captures now.

    TensorFlow keeps a Python stack for each operation of the first one, and several copies of each
    argument.
    """
    captured = pack_handles(definition, captured)
    definition.signature.name += "_as_traced"
    context.context().add_function_def(definition)
    return definition.signature.name, captured


def _return_free_memory() -> None:
    # Of the C library, which would keep it for this thread: what runs is built by others. Not all
    # libraries have it.
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
