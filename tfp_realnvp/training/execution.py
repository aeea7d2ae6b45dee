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
    model: Any, function: Function, step: Function | None = None, is_training: bool = False
) -> Function:
    """Returns a faster version of a function that Keras calls with an iterator.

    With one step per execution, TensorFlow applies fewer graph rewrites, except to models that gain
    from rewrites. Without a strategy, XLA or eager mode, TensorFlow then traces `step`, a function
    of a batch, into one graph, not Keras' two. In training, the result first checks that the last
    step was finite.
    """
    # In a loop over several steps, all of TensorFlow's graph rewrites pay off.
    is_single = model.steps_per_execution == 1
    with model.distribute_strategy.scope():
        is_plain = not (tf.distribute.has_strategy() or model.run_eagerly or model.jit_compile)
    next_step = _in_one_graph(step) if is_single and is_plain and step is not None else None

    def call(iterator: Any) -> Any:
        if is_training:
            # Check one step late: reading the result of a step waits for the step to end.
            model.raise_failure()
        # `train_on_batch` passes a Python iterator of one batch.
        is_dataset = isinstance(iterator, tf.data.Iterator)
        return next_step(iterator) if is_dataset and next_step is not None else function(iterator)

    keeps_rewrites = model.gains_from_rewrites or not is_single
    return call if keeps_rewrites else few_graph_rewrites(fuse=not is_training)(call)


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
