"""Settings of `tf.data` pipelines."""

import tensorflow as tf

__all__ = ["without_autotune"]


def without_autotune(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns the dataset without autotuning, unless its options say something about it."""
    if dataset.options().autotune.enabled is not None:
        return dataset
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
