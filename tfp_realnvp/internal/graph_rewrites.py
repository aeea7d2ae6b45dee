"""Limits the optimizers that TensorFlow applies to a graph before its first run."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfp_realnvp.internal import private_api


@contextlib.contextmanager
def few_graph_rewrites(fuse: bool = False) -> Iterator[None]:
    """Makes TensorFlow apply fewer graph optimizers to functions called within the context.

    Before the first run of a graph, TensorFlow applies a dozen optimizers to it, twice. The
    optimizers take more than a quarter of the time to the first training step. On a CPU, two
    optimizers, applied once, make training steps as fast as all of them. For log densities, `fuse`
    adds a third optimizer; see `benchmarks/README.md`. The context does nothing if the user has set
    `tf.config.optimizer`, or if there is a GPU, whose convolutions need the layout optimizer.

    Call a function only within the context: outside, TensorFlow optimizes its graph again.
    """
    context = private_api.eager_context()
    options = context.function_call_options
    if not tf.config.list_physical_devices("GPU"):
        # `function` inlines functions. `remap` fuses convolutions with subsequent additions and
        # activations. `dependency` removes needless control dependencies, which speeds up training
        # of flows of vectors.
        names = ("function", "remap", "dependency") if fuse else ("function", "dependency")
        few = _few(names, options.executor_type, options.config_proto_serialized)
        context.function_call_options = few or options
    try:
        yield
    finally:
        context.function_call_options = options


@functools.cache
def _few(names: tuple[str, ...], executor: str | None, serialized: bytes | None) -> Any:
    """Returns call options with these optimizers; `None` if the user has set optimizers."""
    config = tf.compat.v1.ConfigProto.FromString(serialized or b"")
    rewrites = config.graph_options.rewrite_options
    if serialized is None or rewrites.ByteSize():
        return None
    rewrites.optimizers.extend(names)
    rewrites.meta_optimizer_iterations = rewrites.ONE
    return private_api.FunctionCallOptions(executor, config)
