"""How TensorFlow runs graphs and `tf.data` pipelines, with less overhead than by default."""

import contextlib
import functools
import os
import platform
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from tfp_realnvp.internal import private_api

# One parallel call per core, at most 16. More calls than the consumer needs cost only memory.
PARALLEL_CALLS = min(os.cpu_count() or 1, 16)
# Prefetch one batch for the next step, and three for times when batches load slowly.
PREFETCHED_BATCHES = 4

Function = Callable[[Any], Any]


def without_autotune(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns `dataset` without autotuning, unless its options set autotuning.

    An iterator's destructor waits for the autotuning thread, which sleeps up to a minute between
    rounds. With autotuning, `fit` would return long after its last step. In the pipeline, use
    explicit numbers instead of `tf.data.AUTOTUNE`.
    """
    if dataset.options().autotune.enabled is not None:
        return dataset
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


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


def made_faster(
    model: keras.Model,
    function: Function,
    keeps_rewrites: bool,
    step: Function | None = None,
    before_step: Callable[[], None] | None = None,
) -> Function:
    """Returns a faster version of a function that Keras calls with an iterator.

    With one step per execution, TensorFlow applies fewer graph rewrites, unless `keeps_rewrites`.
    Without a strategy, XLA or eager mode, TensorFlow then traces `step`, a function of a batch,
    into one graph, not Keras' two. In training, the result first calls `before_step`.
    """
    # In a loop over several steps, all of TensorFlow's graph rewrites pay off.
    is_single = model.steps_per_execution == 1
    with model.distribute_strategy.scope():
        is_plain = not (tf.distribute.has_strategy() or model.run_eagerly or model.jit_compile)
    next_step = _in_one_graph(step) if is_single and is_plain and step is not None else None

    def call(iterator: Any) -> Any:
        if before_step is not None:
            before_step()
        # `train_on_batch` passes a Python iterator of one batch.
        is_dataset = isinstance(iterator, tf.data.Iterator)
        return next_step(iterator) if is_dataset and next_step is not None else function(iterator)

    if keeps_rewrites or not is_single:
        return call
    return few_graph_rewrites(fuse=before_step is None)(call)


def _in_one_graph(step: Function) -> Function:
    """Returns a function that runs `step` on the next batch of a `tf.data` iterator, in one graph.

    Keras traces a graph of a step, and then a second graph that calls the first. TensorFlow copies
    the first graph into the second, which makes the first step up to a quarter slower (see
    `benchmarks/README.md`).
    """

    def none_if_optional(value: Any) -> Any:
        return None if isinstance(value, tf.experimental.Optional) else value

    @functools.partial(tf.function, reduce_retracing=True)
    @tf.autograph.experimental.do_not_convert
    def next_step(iterator: tf.data.Iterator) -> Any:
        # Keras replaces `None` in data from generators by an empty `tf.experimental.Optional`.
        return step(keras.tree.map_structure(none_if_optional, iterator.get_next()))

    return next_step


@functools.cache
def advise_onednn() -> None:
    """Logs a warning, once per process, if convolutions would be faster with oneDNN.

    By default TensorFlow uses oneDNN only on x86 processors with VNNI instructions. TensorFlow
    reads `TF_ENABLE_ONEDNN_OPTS` at import. A user who has set this variable gets no warning.
    """
    name = "TF_ENABLE_ONEDNN_OPTS"
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    is_off = is_x86 and name not in os.environ and not private_api.is_onednn_enabled()
    if is_off and not tf.config.list_physical_devices("GPU"):
        logging.warning(
            "Training is about 1.4 times as fast on this processor with oneDNN, which TensorFlow "
            "leaves off here: set the environment variable %s=1 before TensorFlow is imported.",
            name,
        )


@functools.cache
def advise_no_xla() -> None:
    """Logs a warning, once per process, if XLA compiles for a CPU."""
    if {device.device_type for device in tf.config.list_physical_devices()} == {"CPU"}:
        logging.warning(
            "On a CPU, the first step takes five to ten times as long with XLA, and later steps "
            "are not faster: leave out jit_compile=True."
        )
