"""Functions that are computed once for each owner, or traced once for each list of shapes."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import tensorflow as tf

__all__ = ["call_traced", "kept", "traced_once"]


def kept(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that computes its result once for each owner and arguments.

    The owner is the first argument. The result must not refer to it, or the owner is never freed.
    """
    results: weakref.WeakKeyDictionary[Any, dict[Hashable, Any]] = weakref.WeakKeyDictionary()

    @functools.wraps(function)
    def call(owner: Any, *arguments: Hashable) -> Any:
        of_owner = results.setdefault(owner, {})
        if arguments not in of_owner:
            of_owner[arguments] = function(owner, *arguments)
        return of_owner[arguments]

    return call


def call_traced(
    function: Callable[..., Any],
    owner: Any,
    options: tuple[Hashable, ...],
    *tensors: tf.Tensor,
    jit_compile: bool = False,
) -> Any:
    """Returns `function(owner, *options, *tensors)`.

    TensorFlow traces the function, which has no state of its own, once for each owner and options,
    for any first dimension of the tensors. The graph is kept with the owner. With `jit_compile`,
    XLA compiles it once for each shape.
    """
    shapes = [[None, *x.shape[1:]] if x.shape.rank else [] for x in tensors]
    specs = tuple(tf.TensorSpec(s, x.dtype) for s, x in zip(shapes, tensors, strict=True))
    return _traced(owner, function, options, jit_compile, specs)(*tensors)


@kept
def _traced(
    owner: Any, function: Callable[..., Any], options: Any, jit_compile: bool, specs: Any
) -> Callable[..., Any]:
    # TensorFlow counts the traces of a lambda for all owners, and would warn of them.
    return tf.function(
        functools.partial(_call, weakref.ref(owner), function, options),
        input_signature=specs,
        autograph=False,
        jit_compile=jit_compile or None,
    )


def _call(owner: Any, function: Callable[..., Any], options: Any, *tensors: tf.Tensor) -> Any:
    return function(owner(), *options, *tensors)


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
