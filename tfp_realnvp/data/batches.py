"""Batches of images, and their order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_realnvp.internal import validation
from tfp_realnvp.internal.tf_data import PARALLEL_CALLS

__all__ = ["BatchPlan", "array_batches", "with_image"]


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """The order of the images of a split and their division into batches.

    In training, each epoch visits the images in a random order that depends only on `seed` and the
    number of the epoch. All batches are full; the images that remain after the last full batch of
    an epoch are skipped. Evaluation is one pass over all images in order, and its last batch can be
    smaller.

    Attributes:
      batch_size: number of images in a batch of one shard.
      training: whether to shuffle, to augment and to repeat.
      flip: whether to mirror each image with probability 1/2 in training.
      seed: seed of order and augmentation, in [0, 2³¹).
      epoch: first epoch, counted from 0.
      step: first batch within the first epoch, counted from 0.
      num_epochs: number of training epochs; `None` means unlimited.
      num_shards: number of workers that divide the images among them. In each step, the batches of
        all shards together form a batch of `num_shards * batch_size` images.
      shard_index: index of this worker, from 0.

    Raises:
      ValueError: if a number is out of range, or if `epoch`, `step` or `num_epochs` is given
        without `training`.
    """

    batch_size: int
    training: bool = False
    flip: bool = False
    seed: int = 0
    epoch: int = 0
    step: int = 0
    num_epochs: int | None = None
    num_shards: int = 1
    shard_index: int = 0

    def __post_init__(self) -> None:
        for name, at_least in (("batch_size", 1), ("num_shards", 1), ("epoch", 0), ("step", 0)):
            value = getattr(self, name)
            validation.require(value >= at_least, f"Expected {name} of at least {at_least}", value)
        validation.require(
            self.num_epochs is None or self.num_epochs >= 1,
            "Expected num_epochs of at least 1 or None",
            self.num_epochs,
        )
        validation.require(self.seed in range(2**31), "Expected a seed in [0, 2**31)", self.seed)
        validation.require(
            0 <= self.shard_index < self.num_shards,
            f"Expected a shard_index in [0, {self.num_shards})",
            self.shard_index,
        )
        if not self.training and (self.epoch, self.step, self.num_epochs) != (0, 0, None):
            raise ValueError("Expected epoch, step and num_epochs only with training=True.")

    @property
    def global_batch_size(self) -> int:
        """The number of images in one step of all shards."""
        return self.batch_size * self.num_shards

    def steps_per_epoch(self, num_images: int) -> int:
        """Returns the number of batches of this shard in an epoch over `num_images` images.

        Raises:
          ValueError: if there are too few images for one batch.
        """
        if self.training:
            steps = num_images // self.global_batch_size
        else:
            images_of_shard = len(range(self.shard_index, num_images, self.num_shards))
            steps = -(-images_of_shard // self.batch_size)
        if steps == 0:
            raise ValueError(
                f"Expected at least one {'full ' if self.training else ''}batch of "
                f"{self.batch_size} images for each of {self.num_shards} shards, got "
                f"{num_images} images."
            )
        return steps

    def epoch_seed(self, epoch: tf.Tensor) -> tf.Tensor:
        """Returns the stateless seed of an epoch, two integers."""
        return tf.stack([tf.constant(self.seed, tf.int64), tf.cast(epoch, tf.int64)])


def with_image(function: Callable[[Any], Any], example: Any) -> Any:
    """Applies a function to an image, or to the image of a tuple of an image and its condition."""
    if isinstance(example, tuple):
        image, condition = example
        return function(image), condition
    return function(example)


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
            batch = with_image(
                lambda images: tf.image.stateless_random_flip_left_right(images, flip_seed), batch
            )
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
