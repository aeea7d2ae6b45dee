"""Options and sizes of `tf.data` pipelines."""

import os

import tensorflow as tf

# One parallel call per core, at most 16. More calls than the consumer needs cost only memory.
PARALLEL_CALLS = min(os.cpu_count() or 1, 16)
# Prefetch one batch for the next step, and three for times when batches load slowly.
PREFETCHED_BATCHES = 4


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
