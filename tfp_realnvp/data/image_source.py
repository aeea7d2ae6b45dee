"""Batches of images that are read from files and decoded on the fly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_realnvp.data.batches import BatchPlan, with_image
from tfp_realnvp.internal.tf_data import PARALLEL_CALLS, without_autotune

__all__ = ["ImageSource", "read_arrays", "stream_batches"]


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """The images of a split that are stored in files.

    Attributes:
      num_images: number of images, or `None` if it is unknown.
      image_shape: shape `(H, W, C)` of prepared images.
      records: a function of an integer seed that returns a `tf.data.Dataset` of strings, or of
        tuples of a string and the condition of its image, in a random order that depends only on
        the seed. With the seed `None` the order is fixed.
      decode: a function of such a string that returns a `uint8` image `[h, w, C]`.
      prepare: a function of a decoded image that returns one of shape `image_shape`.
      augment: a function of a decoded image and a seed of two integers that returns an image of
        shape `image_shape`. It replaces `prepare` in training. `None` if preparation is not random.

    """

    num_images: int | None
    image_shape: tuple[int, int, int]
    records: Callable[[tf.Tensor | None], tf.data.Dataset]
    decode: Callable[[tf.Tensor], tf.Tensor]
    prepare: Callable[[tf.Tensor], tf.Tensor]
    augment: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None

    @property
    def num_bytes(self) -> float:
        """The size of all prepared images in bytes; infinite if their number is unknown."""
        count = float("inf") if self.num_images is None else self.num_images
        return count * float(np.prod(self.image_shape))


def stream_batches(source: ImageSource, plan: BatchPlan) -> tf.data.Dataset:
    """Returns the batches of a source that a plan describes, decoded in parallel.

    Starting in the middle of an epoch reads the earlier images without decoding them. Each shard
    reads all images and decodes only its own.

    Args:
      source: an `ImageSource`.
      plan: a `BatchPlan`.

    Returns:
      A `tf.data.Dataset` of `uint8` tensors of shape `[batch_size, *image_shape]`, or of tuples of
      images and conditions.

    Raises:
      ValueError: if `source.num_images` is too small for one batch.
    """
    steps = None if source.num_images is None else plan.steps_per_epoch(source.num_images)
    if not plan.training:
        records = source.records(None).shard(plan.num_shards, plan.shard_index)

        def prepared(content: tf.Tensor) -> tf.Tensor:
            return tf.ensure_shape(source.prepare(source.decode(content)), source.image_shape)

        # `map` passes the parts of a tuple as separate arguments. Enumerated, a record is only one.
        examples = records.enumerate().map(
            lambda _, record: with_image(prepared, record), num_parallel_calls=PARALLEL_CALLS
        )
        return examples.batch(plan.batch_size)

    first_epoch, first_step = plan.epoch, plan.step
    if steps is not None:
        first_epoch, first_step = first_epoch + first_step // steps, first_step % steps

    @tf.autograph.experimental.do_not_convert
    def records_of_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        # `tf.data` combines the seed of a shuffle with the global seed, so that the order would
        # depend on both. This sets the global seed of this graph only.
        tf.random.set_seed(1)
        seed = plan.epoch_seed(epoch)
        order = tf.random.stateless_uniform([], seed, maxval=2**31 - 1, dtype=tf.int64)
        batches = source.records(order).enumerate().batch(plan.global_batch_size, True)
        batches = batches.skip(tf.where(epoch == first_epoch, np.int64(first_step), np.int64(0)))
        of_shard = slice(plan.shard_index, None, plan.num_shards)
        records = batches.map(
            lambda *batch: tf.nest.map_structure(lambda values: values[of_shard], batch)
        ).unbatch()
        return records.map(lambda position, record: (seed, position, record))

    augment = source.augment or (lambda image, seed: source.prepare(image))

    def example(epoch_seed: tf.Tensor, position: tf.Tensor, record: Any) -> Any:
        seed = tf.random.experimental.stateless_fold_in(epoch_seed, position)
        augment_seed, flip_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2))

        def augmented(content: tf.Tensor) -> tf.Tensor:
            image = augment(source.decode(content), augment_seed)
            if plan.flip:
                image = tf.image.stateless_random_flip_left_right(image, flip_seed)
            return tf.ensure_shape(image, source.image_shape)

        return with_image(augmented, record)

    if plan.num_epochs is None:
        epochs = tf.data.Dataset.counter(first_epoch)
    else:
        epochs = tf.data.Dataset.range(first_epoch, plan.epoch + plan.num_epochs)
    records = epochs.flat_map(records_of_epoch)
    examples = records.map(example, num_parallel_calls=PARALLEL_CALLS)
    # Each epoch has a multiple of `batch_size` images, so that no batch spans two epochs.
    return examples.batch(plan.batch_size, drop_remainder=True)


def read_arrays(source: ImageSource) -> Any:
    """Returns all images of a source in order, prepared but not augmented.

    The result is a `uint8` array of shape `[N, H, W, C]`, or a tuple of it and an array of the
    conditions.
    """
    batches = without_autotune(stream_batches(source, BatchPlan(256)))
    return tf.nest.map_structure(lambda *parts: np.concatenate(parts), *batches.as_numpy_iterator())
