"""Gradients that compute a network's activations again instead of keeping them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence

import tensorflow as tf
from tensorflow.python import pywrap_tfe

from tfp_realnvp import replicas

__all__ = ["in_order", "recompute_gradient", "recording"]

# How types of operations, and of their gradients, begin. Not those that take little memory or time,
# whose order would cost more than it saves.
_IN_ORDER = ("Conv", "DepthwiseConv", "FusedBatchNorm")


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Lets a tape within record, also where recording was stopped, as in `tf.init_scope`.

    A gradient may be asked for there, and one that computes again needs a tape of its own.

    #### Example

    >>> import tensorflow as tf
    >>> x = tf.constant(3.0)
    >>> with tf.init_scope():
    ...   with recording(), tf.GradientTape() as tape:
    ...     tape.watch(x)
    ...     y = x**2
    >>> float(tape.gradient(y, x))
    6.0
    """
    is_stopped = pywrap_tfe.TFE_Py_TapeSetIsStopped()
    if is_stopped:
        pywrap_tfe.TFE_Py_TapeSetRestartOnThread()
    try:
        yield
    finally:
        if is_stopped:
            pywrap_tfe.TFE_Py_TapeSetStopOnThread()


@contextlib.contextmanager
def in_order() -> Iterator[None]:
    """Lets the convolutions and normalisations made within, in a graph, run in the order made.

    A graph runs what is ready, on several threads: gradients by kernels wait, and the maps that
    they are computed from with them, while gradients by maps go ahead. In the order in which a tape
    makes them fewer maps are kept at a time.

    #### Example

    >>> import tensorflow as tf
    >>> image, kernel = tf.ones([1, 4, 4, 1]), tf.fill([1, 1, 1, 1], 2.0)
    >>> @tf.function
    ... def twice(x):
    ...   with in_order():
    ...     return tf.nn.conv2d(tf.nn.conv2d(x, kernel, 1, 'SAME'), kernel, 1, 'SAME')
    >>> float(twice(image)[0, 0, 0, 0])
    4.0
    """
    if tf.executing_eagerly():
        yield
        return
    graph = tf.compat.v1.get_default_graph()
    number = len(graph.get_operations())
    yield
    made = [op for op in graph.get_operations()[number:] if op.type.startswith(_IN_ORDER)]
    for before, after in itertools.pairwise(made):
        after._add_control_input(before)


def recompute_gradient(
    function: Callable[..., tf.Tensor],
    inputs: Sequence[tf.Tensor],
    state: Sequence[tf.Variable],
) -> tf.Tensor:
    """Returns `function(*inputs)`, of which the gradient keeps nothing but the inputs.

    The backward pass runs the function a second time, when the gradient of its output is there,
    and differentiates that: memory of one function at a time, for one more forward pass. The
    second run finds the `state` (moving statistics, random seeds) as the first one did, and leaves
    it as the first one left it: the results are the same, and statistics move once.

    #### Example

    >>> import tensorflow as tf
    >>> weight, calls = tf.Variable(3.0), tf.Variable(0.0, trainable=False)
    >>> def cube(x):
    ...   calls.assign_add(1.0)
    ...   return weight * x**3
    >>> with tf.GradientTape() as tape:
    ...   y = recompute_gradient(cube, [tf.constant(2.0)], [calls])
    >>> float(tape.gradient(y, weight)), float(calls)
    (8.0, 1.0)

    Args:
      function: of the inputs and of variables.
      inputs: floating tensors.
      state: the variables that `function` writes.

    Returns:
      The function's value.
    """
    before = [tf.identity(variable) for variable in state]

    @tf.custom_gradient
    def forward(*inputs: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        output = function(*inputs)

        def backward(upstream: tf.Tensor, variables: Sequence[tf.Variable] = ()) -> tuple:
            # Not before the gradient arrives: else all networks would run again at once.
            with tf.control_dependencies([upstream]):
                again = [tf.identity(tensor) for tensor in inputs]
                after = [tf.identity(variable) for variable in state]
            for variable, value in zip(state, before, strict=True):
                replicas.assign(variable, value)
            with in_order():
                with recording(), tf.GradientTape() as tape:
                    tape.watch(again)
                    output = function(*again)
                for variable, value in zip(state, after, strict=True):
                    replicas.assign(variable, value)
                gradients = tape.gradient(
                    output,
                    [again, list(variables)],
                    output_gradients=upstream,
                    unconnected_gradients=tf.UnconnectedGradients.ZERO,
                )
            # `tf.custom_gradient` wants the second part only from functions of variables.
            return (gradients[0], gradients[1]) if variables else gradients[0]

        return output, backward

    return forward(*inputs)
