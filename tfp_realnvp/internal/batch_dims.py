"""Flattens the sample and batch dimensions into the single batch dimension that networks take."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf


def broadcast_batch(
    event: tf.Tensor, event_ndims: int, condition: tf.Tensor, condition_ndims: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Broadcasts the leading shapes of events and conditions, or raises `ValueError`."""
    return (
        _with_batch(event, event_ndims, condition, condition_ndims),
        _with_batch(condition, condition_ndims, event, event_ndims),
    )


def _with_batch(value: tf.Tensor, ndims: int, other: tf.Tensor, other_ndims: int) -> tf.Tensor:
    batch = _leading(value.shape, ndims)
    try:
        static = tf.broadcast_static_shape(batch, _leading(other.shape, other_ndims))
    except ValueError as error:
        raise ValueError(
            "expected events and conditional_input with batch shapes that broadcast, got shapes "
            f"{value.shape} with {ndims} and {other.shape} with {other_ndims} event dimensions."
        ) from error
    if batch.is_fully_defined() and static == batch:
        return value
    shape, other_shape = tf.shape(value), tf.shape(other)
    # A label has no event dimensions.
    batches = shape[: -ndims or None], other_shape[: -other_ndims or None]
    event = [shape[-ndims:]] if ndims else []
    shape = tf.concat([tf.broadcast_dynamic_shape(*batches), *event], axis=0)
    static = static.concatenate(_event(value.shape, ndims))
    return tf.ensure_shape(tf.broadcast_to(value, shape), static)


def _leading(shape: tf.TensorShape, ndims: int) -> tf.TensorShape:
    return shape if shape.rank is None else shape[: shape.rank - ndims]


def _event(shape: tf.TensorShape, ndims: int) -> tf.TensorShape:
    return tf.TensorShape([None] * ndims) if shape.rank is None else shape[shape.rank - ndims :]


def slices(size: int, *arrays: Any) -> Iterator[tuple[Any, ...]]:
    """Yields consecutive slices of `size` rows, as tuples over the arrays; `None` stays `None`."""
    for start in range(0, len(arrays[0]), size):
        yield tuple(None if a is None else a[start : start + size] for a in arrays)


def flatten_batch(events: tf.Tensor, event_ndims: int = 3) -> tf.Tensor:
    """Reshapes events [..., H, W, C] to one batch [B, H, W, C]."""
    if events.shape.rank == 1 + event_ndims:
        return events
    # A label has no event dimensions.
    event_shape = [tf.shape(events)[-event_ndims:]] if event_ndims else []
    batch = tf.reshape(events, tf.concat([[-1], *event_shape], axis=0))
    batch.set_shape([None, *_event(events.shape, event_ndims)])
    return batch


def unflatten_batch(batch: tf.Tensor, like: tf.Tensor, event_ndims: int = 3) -> tf.Tensor:
    """Reshapes a batch [B, H', W', C'] to [..., H', W', C'], with leading dimensions of `like`."""
    if like.shape.rank == 1 + event_ndims:
        return batch
    leading = tf.shape(like)[:-event_ndims]
    events = tf.reshape(batch, tf.concat([leading, tf.shape(batch)[1:]], axis=0))
    if like.shape.rank is not None:
        events.set_shape([*like.shape[:-event_ndims], *batch.shape[1:]])
    return events


def may_be_empty(events: tf.Tensor, event_ndims: int) -> bool:
    """Returns whether a batch is empty or has an unknown size."""
    batch = _leading(events.shape, event_ndims)
    return not batch.is_fully_defined() or 0 in batch


def without_empty_axes(values: Any) -> Any:
    """Pads axes of size 0 to size 1, with the value 0.5, or 0 for integers.

    With oneDNN, TensorFlow's convolution of an empty batch has a wrong shape, and a matrix product
    without rows crashes the process. Networks therefore get one event in place of an empty batch,
    and `cut_to_batch` removes the result.
    """
    # An undeclared condition can be anything, for example a dictionary.
    if not (tf.is_tensor(values) or isinstance(values, np.ndarray)):
        return values
    values = tf.convert_to_tensor(values)
    missing = tf.cast(tf.equal(tf.shape(values), 0), tf.int32)
    paddings = tf.stack([tf.zeros_like(missing), missing], axis=1)
    filler = tf.constant(0.5 if values.dtype.is_floating else 0, values.dtype)
    filled = tf.pad(values, paddings, constant_values=filler)
    if values.shape.rank is not None:
        filled.set_shape([1 if size == 0 else size for size in values.shape])
    return filled


def cut_to_batch(results: tf.Tensor, like: tf.Tensor, event_ndims: int, ndims: int) -> tf.Tensor:
    """Cuts padded results to the leading shape of `like`, which can contain a size of 0.

    Events have `ndims` axes in `results`, and `event_ndims` axes in `like`.
    """
    batch = tf.shape(like)[:-event_ndims]
    start = tf.zeros_like(tf.shape(results))
    cut = tf.slice(results, start, tf.concat([batch, [-1] * ndims], axis=0))
    static = _leading(like.shape, event_ndims)
    if static.rank is not None:
        cut.set_shape([*static, *_event(results.shape, ndims)])
    return cut


def sides(image: tf.Tensor) -> tuple[Any, Any]:
    """Returns height and width: integers, or scalar tensors if one is unknown."""
    height, width = image.shape[-3:-1]
    if height is None or width is None:
        height, width = tf.unstack(tf.shape(image)[-3:-1])
    return height, width
