"""Results and graphs that are kept with the object that they belong to, and freed with it."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import tensorflow as tf

__all__ = ["kept", "traced"]

Function = TypeVar("Function", bound=Callable[..., Any])


def kept(function: Function) -> Function:
    """Returns a function that computes its result once for each owner, its first argument.

    #### Example

    >>> import tensorflow_probability as tfp
    >>> from tfp_realnvp.internal.kept import kept
    >>> calls = []
    >>> event_shape = kept(lambda d: calls.append(d.name) or d.event_shape)
    >>> normal = tfp.distributions.Normal(0., 1.)
    >>> event_shape(normal).rank, event_shape(normal).rank, calls
    (0, 0, ['Normal'])

    Args:
      function: a function of an owner and of hashable arguments. Its result must not refer to the
        owner, which could then never be freed.
    """
    results: weakref.WeakKeyDictionary[Any, dict[Hashable, Any]] = weakref.WeakKeyDictionary()

    @functools.wraps(function)
    def call(owner: Any, *arguments: Hashable) -> Any:
        of_owner = results.setdefault(owner, {})
        if arguments not in of_owner:
            of_owner[arguments] = function(owner, *arguments)
        return of_owner[arguments]

    return call  # type: ignore[return-value]


def traced(
    function: Callable[..., tf.Tensor], owner: Any, *options: Hashable, jit_compile: bool = False
) -> Callable[..., tf.Tensor]:
    """Returns `function(owner, *options, *tensors)` as a function of tensors, or `None`.

    It is traced once for each owner, function and options, for tensors of any first dimension.

    #### Example

    >>> import tensorflow as tf, tensorflow_probability as tfp
    >>> from tfp_realnvp.internal.kept import traced
    >>> traces = []
    >>> def log_prob(distribution, x):
    ...     traces.append(x.shape)
    ...     return distribution.log_prob(x)
    >>> normal = tfp.distributions.Normal(0., 1.)
    >>> [traced(log_prob, normal)(tf.zeros(n)).shape[0] for n in (1, 2, 3)], traces
    ([1, 2, 3], [TensorShape([None])])

    Args:
      function: a function of a module, which has no state of its own.
      owner: the first argument, for example a distribution.
      *options: further arguments.
      jit_compile: whether XLA compiles the function, once for each shape.
    """

    def call(*tensors: tf.Tensor | None) -> tf.Tensor:
        specs = tuple(
            None
            if x is None
            else tf.TensorSpec([None, *x.shape[1:]] if x.shape.rank else [], x.dtype)
            for x in tensors
        )
        function_of_tensors = _traced(owner, function, options, jit_compile, specs)
        return function_of_tensors(*(x for x in tensors if x is not None))

    return call


@kept
def _traced(
    owner: Any,
    function: Callable[..., tf.Tensor],
    options: tuple[Hashable, ...],
    jit_compile: bool,
    specs: tuple[tf.TensorSpec | None, ...],
) -> tf.types.experimental.PolymorphicFunction:
    owner_reference = weakref.ref(owner)

    def function_of_tensors(*tensors: tf.Tensor) -> tf.Tensor:
        rest = iter(tensors)
        arguments = [None if spec is None else next(rest) for spec in specs]
        return function(owner_reference(), *options, *arguments)

    return tf.function(
        function_of_tensors,
        input_signature=[spec for spec in specs if spec is not None],
        autograph=False,
        jit_compile=jit_compile or None,
    )
