"""The rewrites that TensorFlow makes of a graph before its first run."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfp_realnvp.internal import private_api

__all__ = ["few_graph_rewrites"]

# Functions are inlined, and needless dependencies between operations are removed, which makes
# training steps of flows of vectors faster.
_REWRITES = ("function", "dependency")
# Convolutions are fused with the sums and activations that follow.
_FUSING = ("function", "remap", "dependency")


@contextlib.contextmanager
def few_graph_rewrites(fuse: bool = False) -> Iterator[None]:
    """Lets TensorFlow make few rewrites of the graphs of functions that are called in the context.

    Before the first run of a graph, TensorFlow applies a dozen optimizers to it, twice. This takes
    more than a quarter of the time to the first training step. On a CPU, two optimizers, applied
    once, make steps of affine couplings as fast, and a third makes log densities as fast (see
    `benchmarks/README.md`). Nothing changes with a GPU, whose convolutions need another layout, or
    if `tf.config.optimizer` was used.

    Call a function in the context each time. Outside of it, the function is rewritten again. With
    `fuse`, convolutions are fused with the sums and activations that follow: log densities in
    bfloat16 need it, training steps gain nothing.
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
    """Returns options of function calls with few rewrites, or `None` if the user chose options."""
    config = tf.compat.v1.ConfigProto.FromString(serialized or b"")
    rewrites = config.graph_options.rewrite_options
    if serialized is None or rewrites.ByteSize():
        return None
    rewrites.optimizers.extend(names)
    rewrites.meta_optimizer_iterations = rewrites.ONE
    return private_api.FunctionCallOptions(executor, config)
