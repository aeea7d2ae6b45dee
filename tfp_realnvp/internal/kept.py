"""Results and graphs that are kept with the object that they belong to, and freed with it."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import tensorflow as tf

__all__ = ["call_traced", "kept"]


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
    function: Callable[..., tf.Tensor],
    owner: Any,
    options: tuple[Hashable, ...],
    *tensors: tf.Tensor,
    jit_compile: bool = False,
) -> tf.Tensor:
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
    owner: Any, function: Callable[..., tf.Tensor], options: Any, jit_compile: bool, specs: Any
) -> Callable[..., tf.Tensor]:
    # TensorFlow counts the traces of a lambda for all owners, and would warn of them.
    return tf.function(
        functools.partial(_call, weakref.ref(owner), function, options),
        input_signature=specs,
        autograph=False,
        jit_compile=jit_compile or None,
    )


def _call(owner: Any, function: Callable[..., Any], options: Any, *tensors: tf.Tensor) -> Any:
    return function(owner(), *options, *tensors)
