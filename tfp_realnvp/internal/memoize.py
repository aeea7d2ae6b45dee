"""Memoizes results and traced graphs of functions, per owner or per list of shapes."""

import contextvars
import functools
import inspect
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import tensorflow as tf

from tfp_realnvp.internal import bijector_cache, private_api


def memoized(function: Callable[..., Any]) -> Callable[..., Any]:
    """Memoizes the results of a function until its first argument, the owner, is freed."""
    # A result must not refer to its owner, because that would keep the owner alive.
    results: weakref.WeakKeyDictionary[Any, dict[Hashable, Any]] = weakref.WeakKeyDictionary()

    @functools.wraps(function)
    def call(owner: Any, *arguments: Hashable) -> Any:
        of_owner = results.setdefault(owner, {})
        if arguments not in of_owner:
            of_owner[arguments] = function(owner, *arguments)
        return of_owner[arguments]

    return call


def traced(
    function: Callable[..., Any],
    inputs: Sequence[tf.TensorSpec],
    jit_compile: bool = False,
    **defaults: Any,
) -> tf.types.experimental.PolymorphicFunction:
    """Returns a `tf.function` whose arguments have the shapes, dtypes and names of `inputs`.

    If `defaults` has the name of the last argument, calls may omit it.
    """
    # TensorFlow counts the traces of a Python function for all its `tf.function`s together, and
    # warns of retracing. It counts the traces of a new partial function apart.
    call: Any = functools.partial(function)
    kind, no_default = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
    names = [spec.name or f"input{i}" for i, spec in enumerate(inputs)]
    *parameters, last = (inspect.Parameter(name, kind) for name in names)
    last = last.replace(default=defaults.get(last.name, no_default))
    call.__signature__ = inspect.Signature([*parameters, last])
    return tf.function(call, inputs, autograph=False, jit_compile=jit_compile or None)


def call_traced(
    function: Callable[..., Any],
    owner: Any,
    options: tuple[Hashable, ...],
    *tensors: tf.Tensor,
    jit_compile: bool = False,
) -> Any:
    """Returns `function(owner, *options, *tensors)`.

    TensorFlow traces the stateless function once per combination of owner and options, regardless
    of the tensors' first dimension. The graph lives as long as the owner. With `jit_compile`, XLA
    compiles the graph once per shape. In a `keras.StatelessScope` the function runs eagerly,
    because a graph would keep the scope's values for later calls. The function runs outside of
    contexts such as `call_options`, which a graph would keep, too.
    """
    if private_api.get_stateless_scope() is not None:
        return contextvars.Context().run(function, owner, *options, *tensors)
    shapes = [[None, *x.shape[1:]] if x.shape.rank else [] for x in tensors]
    specs = tuple(tf.TensorSpec(s, x.dtype) for s, x in zip(shapes, tensors, strict=True))
    return _traced(owner, function, options, jit_compile, specs)(*tensors)


@memoized
def _traced(
    owner: Any, function: Callable[..., Any], options: Any, jit_compile: bool, specs: Any
) -> Callable[..., Any]:
    # The graph lives until its owner is freed, and must not keep the owner alive.
    reference = weakref.ref(owner)

    def call(*tensors: tf.Tensor) -> Any:
        try:
            return contextvars.Context().run(function, reference(), *options, *tensors)
        finally:
            bijector_cache.forget_results()

    return traced(call, specs, jit_compile=jit_compile)


def traced_once(function: Callable[..., Any], any_shape: bool = False) -> Callable[..., Any]:
    """Makes `function` one operation of a graph, and its gradient another operation.

    TensorFlow traces `function` once per list of shapes and dtypes, or with `any_shape` once per
    list of ranks and dtypes. Graphs that call `function` for many tensors of equal shapes, such as
    the kernels of equal couplings, are traced faster.

    `function` must not use variables, must receive tensors of known shapes unless `any_shape` is
    true, and must create its own constants. Otherwise XLA recompiles the gradient whenever a
    variable changes, because the gradient takes shapes as inputs, which XLA compiles as constants.
    """

    @functools.cache
    def graph_of(*inputs: tf.TensorSpec) -> Callable[..., Any]:
        return traced(function, inputs).get_concrete_function()

    @functools.wraps(function)
    def call(*arguments: tf.Tensor | tf.Variable) -> Any:
        tensors = [tf.convert_to_tensor(argument) for argument in arguments]
        shapes = [[None] * t.shape.rank if any_shape else t.shape for t in tensors]
        return graph_of(*map(tf.TensorSpec, shapes, [t.dtype for t in tensors]))(*tensors)

    return call
