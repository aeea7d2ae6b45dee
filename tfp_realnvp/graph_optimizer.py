"""Graphs that TensorFlow runs as they were traced."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from tensorflow.core.protobuf import config_pb2
from tensorflow.python.eager import context

__all__ = ["no_graph_optimizer"]


@contextlib.contextmanager
def no_graph_optimizer() -> Iterator[None]:
    """Lets a function that is called within run as it was traced.

    TensorFlow's optimizer makes several copies of a graph at its first call, which for a graph of
    hundreds of calls, with all that they take, is most of its time and memory, and finds nothing to
    do. Functions that are called by this one are optimised as ever, if they were traced before.

    #### Example

    >>> import tensorflow as tf
    >>> double = tf.function(lambda x: 2 * x).get_concrete_function(tf.TensorSpec([]))
    >>> with no_graph_optimizer():
    ...   y = double(tf.constant(3.0))
    >>> float(y)
    6.0
    """
    options = context.context().function_call_options
    try:
        context.context().function_call_options = context.FunctionCallOptions(
            options.executor_type, _without_optimizer(options.config_proto_serialized)
        )
        yield
    finally:
        context.context().function_call_options = options


@functools.lru_cache(maxsize=8)
def _without_optimizer(serialized: bytes) -> config_pb2.ConfigProto:
    config = config_pb2.ConfigProto.FromString(serialized)
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    return config
