"""Makes Keras' steps faster: one graph, fewer rewrites, and advice on oneDNN and XLA."""

import functools
import os
import platform
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from tfp_realnvp.internal import private_api
from tfp_realnvp.internal.graph_rewrites import few_graph_rewrites

Function = Callable[[Any], Any]


def made_faster(
    model: Any, function: Function, step: Function | None = None, fuse: bool = False
) -> Function:
    """Returns a faster version of a function that Keras calls with an iterator.

    TensorFlow applies fewer graph rewrites, except to models that gain from rewrites. Without a
    strategy, XLA or eager mode, TensorFlow traces `step`, a function of a batch, into one graph,
    not Keras' two. With several steps per execution, returns `function` unchanged.
    """
    # In a loop over several steps, all of TensorFlow's graph rewrites pay off.
    if model.steps_per_execution > 1:
        return function
    with model.distribute_strategy.scope():
        has_strategy = tf.distribute.has_strategy()
    if step is not None and not (has_strategy or model.run_eagerly or model.jit_compile):
        function = _as_one_graph(function, step)
    return function if model.gains_from_rewrites else few_graph_rewrites(fuse)(function)


def _as_one_graph(function: Function, step: Function) -> Function:
    """Returns a function that runs `step` on an iterator's next batch, in a single graph.

    Keras traces a graph of a step, and then a second graph that calls the first. TensorFlow copies
    the first graph into the second, which makes the first step up to a quarter slower (see
    `benchmarks/README.md`). For an iterator that is not from `tf.data`, calls `function`.
    """

    def none_if_optional(value: Any) -> Any:
        return None if isinstance(value, tf.experimental.Optional) else value

    @functools.partial(tf.function, reduce_retracing=True)
    @tf.autograph.experimental.do_not_convert
    def next_step(iterator: tf.data.Iterator) -> Any:
        # Keras replaces `None` in data from generators by an empty `tf.experimental.Optional`.
        return step(keras.tree.map_structure(none_if_optional, iterator.get_next()))

    def one_graph(iterator: Any) -> Any:
        # `train_on_batch` passes a Python iterator of one batch.
        is_dataset = isinstance(iterator, tf.data.Iterator)
        return next_step(iterator) if is_dataset else function(iterator)

    return one_graph


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


class RequireBatch(keras.callbacks.Callback):
    """Raises a clear error if `predict` got no batches, before Keras fails."""

    num_batches = 0

    def on_predict_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Counts the batch."""
        self.num_batches += 1

    def on_predict_end(self, logs: dict[str, Any] | None = None) -> None:
        """Raises the error."""
        if not self.num_batches:
            raise ValueError("FlowModel.predict: expected data, got an empty dataset.")
