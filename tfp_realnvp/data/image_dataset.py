"""Batches of an array of images."""

import numpy as np
import tensorflow as tf

from tfp_realnvp.data.preprocessing import flip_some
from tfp_realnvp.internal import validation
from tfp_realnvp.internal.tf_data import PARALLEL_CALLS, PREFETCHED_BATCHES, without_autotune

__all__ = ["image_dataset"]


def image_dataset(
    images: np.ndarray,
    batch_size: int,
    *,
    shuffle: bool = False,
    flip: bool = False,
    seed: int = 0,
    repeat: bool = False,
    drop_remainder: bool = False,
) -> tf.data.Dataset:
    """Returns a dataset of batches of images, which are prepared in the background.

    Order and flips depend on `seed` and on `tf.random.set_seed` if it was called. Two datasets with
    equal arguments yield equal batches in each epoch. Within one dataset, order and flips differ
    from epoch to epoch.

    Args:
      images: `uint8` array of shape `[N, H, W, C]`.
      batch_size: number of images in a batch. The last batch of an epoch can be smaller.
      shuffle: whether each epoch visits the images in a new, uniformly random order.
      flip: whether to mirror each image horizontally with probability 1/2.
      seed: seed of order and flips.
      repeat: whether to repeat without end instead of stopping after one epoch.
      drop_remainder: whether to drop a smaller last batch, which makes the batch size static.

    Returns:
      A `tf.data.Dataset` of `uint8` tensors of shape `[batch_size, H, W, C]`.

    Raises:
      ValueError: if `images` is not `uint8`, not of rank 4 or empty, if `batch_size` is less than
        1, or if `drop_remainder` leaves no batch.
      TypeError: if a number or a bool is of another type.

    #### Example

    >>> import numpy as np
    >>> images = np.zeros([10, 8, 8, 1], np.uint8)
    >>> dataset = image_dataset(images, batch_size=4, shuffle=True, flip=True, seed=1)
    >>> [tuple(batch.shape) for batch in dataset]
    [(4, 8, 8, 1), (4, 8, 8, 1), (2, 8, 8, 1)]

    """
    images = np.asarray(images)
    batch_size = validation.integer(batch_size, 1, "Expected a batch_size of at least 1")
    seed = validation.integer(seed, -(2**63), "Expected an int64 seed")
    flags = {"shuffle": shuffle, "flip": flip, "repeat": repeat, "drop_remainder": drop_remainder}
    for name, value in flags.items():
        validation.flag(value, f"Expected a bool as {name}")
    _check(images, batch_size, drop_remainder)
    # Keep the images in host memory, also on machines with a GPU. Only indices are shuffled.
    with tf.device("CPU"):
        images = tf.constant(images)
    indices = tf.data.Dataset.range(len(images))
    if shuffle:
        indices = indices.shuffle(len(images), seed=seed, reshuffle_each_iteration=True)
    batches = indices.batch(batch_size, drop_remainder=drop_remainder)

    if flip:
        seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(
            2, drop_remainder=True
        )
        batches = tf.data.Dataset.zip(batches, seeds).map(
            lambda batch, flip_seed: flip_some(tf.gather(images, batch), flip_seed),
            num_parallel_calls=PARALLEL_CALLS,
            deterministic=True,
        )
    else:
        batches = batches.map(
            lambda batch: tf.gather(images, batch),
            num_parallel_calls=PARALLEL_CALLS,
            deterministic=True,
        )
    if repeat:
        batches = batches.repeat()
    return without_autotune(batches.prefetch(PREFETCHED_BATCHES))


def _check(images: np.ndarray, batch_size: int, drop_remainder: bool) -> None:
    if images.dtype != np.uint8:
        raise ValueError(f"Expected images of dtype uint8, got {images.dtype}.")
    if images.ndim != 4:
        raise ValueError(f"Expected images of shape [N, H, W, C], got shape {images.shape}.")
    if images.size == 0:
        raise ValueError(f"Expected at least one image and pixel, got shape {images.shape}.")
    if drop_remainder and batch_size > len(images):
        raise ValueError(
            f"Expected at least one full batch of {batch_size} images with drop_remainder=True, "
            f"got {len(images)} images."
        )
