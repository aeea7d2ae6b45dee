"""Options and sizes of `tf.data` pipelines."""

import os

import tensorflow as tf

# One call per core. If the consumer is slow, parallel calls cost only memory.
PARALLEL_CALLS = min(os.cpu_count() or 1, 16)
# One batch for the next step, and three to bridge batches that load more slowly.
PREFETCHED_BATCHES = 4


def without_autotune(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns `dataset` without autotuning, unless its options set autotuning.

    An iterator's destructor waits for the autotuning thread, which sleeps up to a minute between
    rounds, so `fit` would return long after its last step. Use explicit numbers instead of
    `tf.data.AUTOTUNE` in the pipeline.
    """
    if dataset.options().autotune.enabled is not None:
        return dataset
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
