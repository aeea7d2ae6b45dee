"""The assignment of images to batches."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from tfp_realnvp.internal import validation

__all__ = ["BatchPlan"]


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """The order of the images of a split and their division into batches.

    In training, each epoch visits the images in a random order that depends only on `seed` and the
    number of the epoch. All batches are full; the images that remain after the last full batch
    are skipped, which ones differs from epoch to epoch. Evaluation is one pass over all images in
    order, and its last batch can be smaller.

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
      TypeError: if a number or a bool is of another type.
      ValueError: if a number is out of range, or if `epoch`, `step` or `num_epochs` is given
        without `training`.

    #### Example

    >>> BatchPlan(batch_size=4, training=True).steps_per_epoch(10)
    2
    >>> BatchPlan(batch_size=4).steps_per_epoch(10)
    3

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
        for name in ("training", "flip"):
            validation.flag(getattr(self, name), f"Expected a bool as {name}")
        sizes = {"batch_size": 1, "num_shards": 1, "epoch": 0, "step": 0, "shard_index": 0}
        for name, at_least in sizes.items():
            number = validation.integer(
                getattr(self, name), at_least, f"Expected {name} of at least {at_least}"
            )
            # The dataclass is frozen. 4.0 becomes 4.
            object.__setattr__(self, name, number)
        if self.num_epochs is not None:
            number = validation.integer(
                self.num_epochs, 1, "Expected num_epochs of at least 1 or None"
            )
            object.__setattr__(self, "num_epochs", number)
        seed = validation.real(
            self.seed, lambda x: x in range(2**31), "Expected a seed in [0, 2**31)"
        )
        object.__setattr__(self, "seed", int(seed))
        if not self.shard_index < self.num_shards:
            raise ValueError(
                f"Expected a shard_index in [0, {self.num_shards}), got {self.shard_index}."
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
