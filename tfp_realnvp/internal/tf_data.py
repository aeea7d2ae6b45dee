"""Options and sizes of `tf.data` pipelines."""

import os

import tensorflow as tf

__all__ = ["PARALLEL_CALLS", "PREFETCHED_BATCHES", "without_autotune"]

# One call for each core. Calls run only as fast as batches are consumed, so that a large number
# costs nothing but the memory of as many images or batches.
PARALLEL_CALLS = min(os.cpu_count() or 1, 16)
# One batch is for the next step; three bridge batches that take longer than a step to prepare.
PREFETCHED_BATCHES = 4


def without_autotune(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns `dataset` with autotuning off, unless its options already set it.

    The destructor of an iterator waits for the thread that autotunes the pipeline. This thread
    sleeps between its rounds, first for 10 ms, then twice as long each time, up to a minute, and
    the destructor does not always wake it up. `fit` with slow steps may therefore return many
    seconds after its last step. A pipeline without autotuning has no such thread. Its parallel
    calls and prefetched elements should be explicit numbers and not `tf.data.AUTOTUNE`.

    Args:
      dataset: a `tf.data.Dataset`.

    Returns:
      A `tf.data.Dataset` with the same elements.
    """
    if dataset.options().autotune.enabled is not None:
        return dataset
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
