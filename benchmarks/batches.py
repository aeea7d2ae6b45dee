"""Makes shuffled batches of an array of images."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

__all__ = ["training_batches"]


def training_batches(
    images: np.ndarray, batch_size: int, *, flip: bool = False, seed: int = 0
) -> tf.data.Dataset:
    """Returns endless full batches of `uint8` images, in a new order in each epoch.

    `seed` determines the order and, with `flip`, which images are mirrored.
    """
    # The images stay in host memory, even with a GPU; only indices are shuffled.
    with tf.device("CPU"):
        images = tf.constant(images)
    indices = tf.data.Dataset.range(len(images)).shuffle(len(images), seed=seed)
    seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2, True)

    def batch_of(indices: tf.Tensor, flip_seed: tf.Tensor) -> tf.Tensor:
        batch = tf.gather(images, indices)
        return tf.image.stateless_random_flip_left_right(batch, flip_seed) if flip else batch

    batches = tf.data.Dataset.zip(indices.batch(batch_size, drop_remainder=True), seeds)
    # The autotuning thread can delay the end of `fit` and disturb a measurement.
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.map(batch_of, num_parallel_calls=2).repeat().prefetch(4).with_options(options)
