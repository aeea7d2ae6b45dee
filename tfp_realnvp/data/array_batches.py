"""Batches of images in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfp_realnvp.data import preprocessing
from tfp_realnvp.data.batch_plan import BatchPlan
from tfp_realnvp.data.image_source import with_image
from tfp_realnvp.internal.tf_data import PARALLEL_CALLS

__all__ = ["array_batches"]


def array_batches(arrays: Any, plan: BatchPlan) -> tf.data.Dataset:
    """Returns the batches of arrays that a plan describes.

    Each batch is a function of its number, so that batches are computed in parallel and training
    resumes at any epoch and step without reading earlier batches. The order of each epoch is a
    uniformly random permutation of all images.

    Args:
      arrays: images, a `uint8` array of shape `[N, H, W, C]`; or a tuple of images and their
        conditions, an array of shape `[N, ...]`.
      plan: a `BatchPlan`.

    Returns:
      A `tf.data.Dataset` of `uint8` tensors of shape `[batch_size, H, W, C]`, or of tuples of
      images and conditions.

    Raises:
      ValueError: if there are too few images for one batch.

    #### Example

    >>> images = np.arange(10, dtype=np.uint8).reshape([10, 1, 1, 1])
    >>> plan = BatchPlan(batch_size=5, training=True, num_epochs=1)
    >>> order = np.concatenate([batch.numpy().ravel() for batch in array_batches(images, plan)])
    >>> sorted(order.tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]

    """
    num_images = len(tf.nest.flatten(arrays)[0])
    steps = plan.steps_per_epoch(num_images)
    # Keep the arrays in host memory, also on machines with a GPU.
    with tf.device("CPU"):
        arrays = tf.nest.map_structure(tf.constant, arrays)

    def batch_of(indices: tf.Tensor) -> Any:
        return tf.nest.map_structure(lambda array: tf.gather(array, indices), arrays)

    def training_batch(number: tf.Tensor) -> Any:
        epoch, step = number // steps, number % steps
        seed = plan.epoch_seed(epoch)
        positions = tf.range(plan.batch_size, dtype=tf.int64) * plan.num_shards + plan.shard_index
        indices = tf.random.experimental.index_shuffle(
            step * plan.global_batch_size + positions, seed, np.int64(num_images - 1)
        )
        batch = batch_of(indices)
        if plan.flip:
            part = step * plan.num_shards + plan.shard_index
            flip_seed = tf.random.experimental.stateless_fold_in(seed, part)
            batch = with_image(lambda images: preprocessing.flip_some(images, flip_seed), batch)
        return batch

    if not plan.training:
        indices = tf.data.Dataset.range(plan.shard_index, num_images, plan.num_shards)
        return indices.batch(plan.batch_size).map(batch_of, num_parallel_calls=PARALLEL_CALLS)
    first = plan.epoch * steps + plan.step
    if plan.num_epochs is None:
        numbers = tf.data.Dataset.counter(first)
    else:
        numbers = tf.data.Dataset.range(first, (plan.epoch + plan.num_epochs) * steps)
    return numbers.map(training_batch, num_parallel_calls=PARALLEL_CALLS)
