"""The data that `FlowModel` takes: arrays and datasets of images or vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfp_realnvp import pixels
from tfp_realnvp.internal.tf_data import without_autotune
from tfp_realnvp.networks import ConditionSpec

__all__ = [
    "as_dataset",
    "check_condition",
    "check_event_shape",
    "check_events",
    "events_of_batch",
]

# Of events and of their axes, by the rank of an event.
_NAMES = {3: ("images", "height, width, channels"), 1: ("vectors", "size")}


def check_events(x: Any, event_shape: tf.TensorShape, *, gray_levels: bool) -> None:
    """Checks data before training, as far as possible without reading it.

    #### Example

    >>> import numpy as np
    >>> from tfp_realnvp.training.input_data import check_events
    >>> import tensorflow as tf
    >>> shape = tf.TensorShape([4, 4, 1])
    >>> check_events(np.zeros([2, 4, 4, 1], np.uint8), shape, gray_levels=True)

    Args:
      x: images or vectors, or a dataset of them.
      event_shape: [H, W, C] or [D], of the distribution.
      gray_levels: whether the values have to be integers, of any dtype.

    Raises:
      ValueError: if there are none, or they are not [B, H, W, C] with gray levels, or [B, D].
    """
    events, axes = _NAMES[event_shape.rank or 3]
    if isinstance(x, tf.data.Dataset):
        if x.cardinality() == 0:
            raise ValueError(f"FlowModel: expected {events}, got an empty dataset.")
        return
    images = pixels.image_component(x)
    if not hasattr(images, "shape") or not hasattr(images, "dtype"):
        return
    if len(images.shape) != 1 + len(axes.split(",")) or images.shape[0] == 0:
        raise ValueError(
            f"FlowModel: expected {events} [number, {axes}], at least one, got shape "
            f"{tuple(images.shape)}."
        )
    check_event_shape(images, event_shape)
    if gray_levels:
        pixels.check_gray_levels(images, "FlowModel")


def check_condition(x: Any, spec: ConditionSpec | None) -> None:
    """Checks arrays of conditions before training: dtype and shape, and all labels.

    Args:
      x: images and conditions, or a dataset of them.
      spec: the declared condition.

    Raises:
      ValueError: if a condition is not as declared.
    """
    condition = pixels.condition_component(x)
    if spec is not None and isinstance(condition, (np.ndarray, tf.Tensor)):
        spec.as_batch(condition, "FlowModel")


def as_dataset(data: Any, batch_size: int | None = None, *, shuffle: bool = False) -> Any:
    """Returns arrays as a dataset of batches, and datasets and others as they are.

    Arrays are batched as `keras.Model.fit` does, and datasets are kept, but both without autotuning
    by `tf.data`; see `without_autotune`.

    #### Example

    >>> import numpy as np
    >>> from tfp_realnvp.training.input_data import as_dataset
    >>> batches = as_dataset((np.zeros([5, 4, 4, 1]), np.arange(5)), batch_size=2)
    >>> [labels.numpy().tolist() for _, labels in batches]
    [[0, 1], [2, 3], [4]]

    Args:
      data: a NumPy array or tensor, or a tuple or dictionary of such of equal length; a
        `tf.data.Dataset`; or other data that Keras takes.
      batch_size: of the batches made of arrays; by default 32.
      shuffle: whether to shuffle arrays, anew for each epoch.

    Raises:
      ValueError: if the lengths of the arrays differ.
    """
    if isinstance(data, tf.data.Dataset):
        return without_autotune(data)
    if isinstance(data, tuple):
        # Keras allows (images, None) for images without labels.
        data = tuple(each for each in data if each is not None)
    leaves = tf.nest.flatten(data)
    if not leaves or not all(isinstance(leaf, (np.ndarray, tf.Tensor)) for leaf in leaves):
        return data
    lengths = sorted({len(leaf) for leaf in leaves})
    if len(lengths) > 1:
        raise ValueError(f"FlowModel: expected arrays of equal length, got lengths {lengths}.")
    with tf.device("CPU"):
        arrays = tf.nest.map_structure(tf.convert_to_tensor, data)
    indices = tf.data.Dataset.range(lengths[0])
    if shuffle:
        indices = indices.shuffle(lengths[0])
    dataset = indices.batch(32 if batch_size is None else batch_size)
    dataset = dataset.map(
        lambda batch: tf.nest.map_structure(lambda array: tf.gather(array, batch), arrays),
        num_parallel_calls=2,
    ).prefetch(2)
    options = tf.data.Options()
    # Workers that are given the same arrays divide them.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return without_autotune(dataset.with_options(options))


def events_of_batch(data: Any, event_shape: tf.TensorShape) -> tf.Tensor:
    """Returns the images [B, H, W, C], or vectors [B, D], of a batch, which may also have labels.

    #### Example

    >>> import numpy as np, tensorflow as tf
    >>> from tfp_realnvp.training.input_data import events_of_batch
    >>> batch = (np.zeros([2, 4, 4, 1]), np.zeros([2]))
    >>> events_of_batch(batch, tf.TensorShape([4, 4, 1])).shape
    TensorShape([2, 4, 4, 1])

    Args:
      data: as `pixels.image_component` takes it.
      event_shape: of the distribution.

    Raises:
      ValueError: if the shape does not fit.
    """
    events = tf.convert_to_tensor(pixels.image_component(data))
    check_event_shape(events, event_shape)
    return events


def check_event_shape(events: Any, event_shape: tf.TensorShape) -> None:
    """Raises `ValueError` unless `events` is a batch of events of `event_shape`."""
    name, axes = _NAMES[event_shape.rank or 3]
    shape = tf.TensorShape(events.shape)
    if shape.rank != 1 + len(axes.split(",")) or not shape[1:].is_compatible_with(event_shape):
        sizes = axes if event_shape.rank is None else ", ".join(map(str, event_shape))
        raise ValueError(f"FlowModel: expected {name} [batch, {sizes}], got shape {shape}.")
