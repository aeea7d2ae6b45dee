"""Which images make up which batch."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from tfp_realnvp.internal import validation

__all__ = ["BatchPlan"]


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """How to go through the images of a split; the same for all sources.

    In training, each epoch goes through the images in a random order that depends on `seed` and
    the number of the epoch alone, in full batches; the images that are left over after the last
    full batch, others in each epoch, are left out. In evaluation there is one pass over all
    images, in order, and the last batch may be smaller.

    Attributes:
      batch_size: number of images in a batch of one shard.
      training: whether to shuffle, augment and go on epoch after epoch.
      flip: whether to mirror half of the images, in training.
      seed: of order and augmentation, in [0, 2³¹).
      epoch: the first epoch, from 0.
      step: number of the first batch within the first epoch, from 0.
      num_epochs: number of epochs in training; `None` goes on forever.
      num_shards: number of workers that divide the images among them. A step's batches of all
        shards together are a batch of `num_shards * batch_size` images.
      shard_index: this worker's number, from 0.

    Raises:
      TypeError: a number is none, or a flag no bool.
      ValueError: a number is out of range, or `epoch`, `step` or `num_epochs` is given without
        `training`.

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
            # The class is frozen; 4.0 goes on as 4.
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
        """The number of images in a step of all shards."""
        return self.batch_size * self.num_shards

    def steps_per_epoch(self, num_images: int) -> int:
        """The number of this shard's batches in an epoch over `num_images` images.

        Raises:
          ValueError: not one batch can be made.
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
        """Returns the two integers that determine all that is random in an epoch."""
        return tf.stack([tf.constant(self.seed, tf.int64), tf.cast(epoch, tf.int64)])
