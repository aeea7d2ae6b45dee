"""Training batches in a reproducible order."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_realnvp.internal import runtime, validation


def batches(
    images: Any,
    condition: Any = None,
    *,
    batch_size: int,
    augment: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
    seed: int = 0,
    step: int = 0,
    context: tf.distribute.InputContext | None = None,
) -> tf.data.Dataset:
    """Returns training batches in an order that depends only on seed and epoch.

    With `step`, a resumed run gets the same batches as an uninterrupted run. (`FlowModel.fit`
    shuffles arrays differently in every run.) All batches are full: each epoch drops the last
    `len(images) % batch_size` images. The dataset is infinite, so `fit` needs
    `steps_per_epoch=len(images) // batch_size`.

    #### Example

    >>> import tensorflow as tf
    >>> from tfp_realnvp import data
    >>> digits = data.load_arrays("digits")
    >>> batches = data.batches(digits.train, digits.train_labels, batch_size=100)
    >>> [part.shape.as_list() for part in next(iter(batches))]
    [[100, 8, 8, 1], [100]]
    >>> photos = data.load_arrays("photos")
    >>> flip = tf.image.stateless_random_flip_left_right
    >>> continued = data.batches(photos.train, batch_size=16, augment=flip, step=1_000)

    Args:
      images: array `[N, ...]` of any dtype.
      condition: labels, vectors or images `[N, ...]`; batches are then tuples (images, condition).
      batch_size: global batch size, over all workers.
      augment: function that takes a batch of images and a stateless seed, and returns new images.
      seed: integer that seeds the order and `augment`.
      step: number of batches to skip: the steps that the run has already made, in all epochs.
      context: the `InputContext` of `strategy.distribute_datasets_from_function`, which selects
        this worker's part of each batch.

    Raises:
      ValueError: if the arrays differ in length, or there are fewer images than `batch_size`.
    """
    context = context or tf.distribute.InputContext()
    worker, num_workers = context.input_pipeline_id, context.num_input_pipelines
    # Keep the arrays in the CPU's memory, even if there is a GPU.
    with tf.device("CPU"):
        arrays = [tf.convert_to_tensor(a) for a in (images, condition) if a is not None]
    num_images, lengths = len(arrays[0]), [len(array) for array in arrays]
    expected = f"batches: expected arrays of equal length, at least batch_size={batch_size}"
    validation.require(len(set(lengths)) == 1 and num_images >= batch_size, expected, lengths)
    steps_per_epoch = num_images // batch_size

    def batch(number: tf.Tensor) -> Any:
        epoch, position = number // steps_per_epoch, number % steps_per_epoch
        places = position * batch_size + tf.range(worker, batch_size, num_workers, tf.int64)
        order_seed = tf.stack([tf.constant(seed, tf.int64), epoch])
        rows = tf.random.experimental.index_shuffle(places, order_seed, np.int64(num_images - 1))
        parts = [tf.gather(array, rows) for array in arrays]
        if augment is not None:
            part = position * num_workers + worker
            parts[0] = augment(parts[0], tf.random.experimental.stateless_fold_in(order_seed, part))
        return parts[0] if condition is None else tuple(parts)

    dataset = tf.data.Dataset.counter(step).map(batch, num_parallel_calls=runtime.PARALLEL_CALLS)
    return runtime.without_autotune(dataset.prefetch(runtime.PREFETCHED_BATCHES))
