"""Options and sizes of `tf.data` pipelines."""

import os

import tensorflow as tf

__all__ = ["PARALLEL_CALLS", "PREFETCHED_BATCHES", "without_autotune"]

# One call for each core. Calls run only as fast as batches are consumed: more calls cost only the
# memory of their batches.
PARALLEL_CALLS = min(os.cpu_count() or 1, 16)
# One batch is for the next step; three bridge batches that take longer than a step.
PREFETCHED_BATCHES = 4


def without_autotune(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns `dataset` with autotuning off, unless its options already set it.

    The destructor of an iterator waits for the autotuning thread, which sleeps up to a minute
    between its rounds, so that `fit` with slow steps would return many seconds after its last step.
    Without autotuning, parallel calls and prefetched elements must be numbers other than
    `tf.data.AUTOTUNE`.
    """
    if dataset.options().autotune.enabled is not None:
        return dataset
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
