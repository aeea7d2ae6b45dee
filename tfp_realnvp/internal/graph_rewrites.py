"""Which rewrites TensorFlow makes of a graph before its first run."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfp_realnvp.internal import private_api

__all__ = ["few_graph_rewrites"]

# Functions within it are inlined. Dependencies between operations that nothing needs are removed,
# without which steps of flows of vectors take longer.
_REWRITES = ("function", "dependency")
# Convolutions are fused with the sums and activations that follow.
_FUSING = ("function", "remap", "dependency")


@contextlib.contextmanager
def few_graph_rewrites(fuse: bool = False) -> Iterator[None]:
    """Lets TensorFlow make few rewrites of the graphs of functions that are called in the context.

    Before the first run of a graph TensorFlow rewrites it by a dozen optimizers, twice. For a step
    of training, this is more than a quarter of the time until it runs. On a CPU, two of them, each
    once, make a step of affine couplings as fast, and log densities with a third one (see
    `benchmarks/README.md`). Where there is a GPU, whose convolutions need another layout, and where
    options were set by `tf.config.optimizer`, all stays as it is.

    A function has to be called in the context each time, or it is rewritten anew.

    #### Example

    >>> import tensorflow as tf
    >>> from tfp_realnvp.internal.graph_rewrites import few_graph_rewrites
    >>> square = tf.function(lambda x: x * x)
    >>> with few_graph_rewrites():
    ...     float(square(tf.constant(3.0)))
    9.0

    Args:
      fuse: whether convolutions are fused with the sums and activations that follow. Log densities
        in bfloat16 need it; steps of training gain nothing from it.
    """
    context = private_api.eager_context()
    options = context.function_call_options
    if not tf.config.list_physical_devices("GPU"):
        rewrites = _FUSING if fuse else _REWRITES
        few = _few(rewrites, options.executor_type, options.config_proto_serialized)
        context.function_call_options = few or options
    try:
        yield
    finally:
        context.function_call_options = options


@functools.cache
def _few(names: tuple[str, ...], executor: str | None, serialized: bytes | None) -> Any:
    """Returns options of function calls with few rewrites, or `None` if others were chosen."""
    config = tf.compat.v1.ConfigProto.FromString(serialized or b"")
    rewrites = config.graph_options.rewrite_options
    if serialized is None or rewrites.ByteSize():
        return None
    rewrites.optimizers.extend(names)
    rewrites.meta_optimizer_iterations = rewrites.ONE
    return private_api.FunctionCallOptions(executor, config)
