"""Reshapes leading sample and batch dimensions to the one batch dimension of networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["broadcast_batch", "call_on_events", "flatten_batch", "unflatten_batch"]


def broadcast_batch(
    event: tf.Tensor, event_ndims: int, condition: tf.Tensor, condition_ndims: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Broadcasts the leading dimensions of an event and a condition with each other.

    #### Example

    >>> import tensorflow as tf
    >>> from tfp_realnvp.internal.batch_dims import broadcast_batch
    >>> image, condition = broadcast_batch(tf.ones([5, 4, 4, 1]), 3, tf.ones([3, 1, 8]), 1)
    >>> image.shape, condition.shape
    (TensorShape([3, 5, 4, 4, 1]), TensorShape([3, 5, 8]))

    Args:
      event: [..., H, W, C] or [..., D].
      event_ndims: 3 for images, 1 for vectors.
      condition: its last `condition_ndims` dimensions are the condition of one event.
      condition_ndims: 3 for images, 1 for vectors, 0 for labels.

    Raises:
      ValueError: if the leading dimensions do not broadcast.
    """
    return (
        _with_batch(event, event_ndims, condition, condition_ndims),
        _with_batch(condition, condition_ndims, event, event_ndims),
    )


def _with_batch(value: tf.Tensor, ndims: int, other: tf.Tensor, other_ndims: int) -> tf.Tensor:
    """Broadcasts the leading dimensions of `value` with the leading dimensions of `other`."""
    batch = _leading(value.shape, ndims)
    static = _static_batch(value.shape, ndims, other.shape, other_ndims)
    if batch.is_fully_defined() and static == batch:
        return value
    value_batch, event_shape = _split_shape(value, ndims)
    other_batch, _ = _split_shape(other, other_ndims)
    shape = tf.concat([tf.broadcast_dynamic_shape(value_batch, other_batch), event_shape], axis=0)
    result = tf.broadcast_to(value, shape)
    if static.rank is not None:
        event = value.shape[value.shape.rank - ndims :]
        result = tf.ensure_shape(result, static.concatenate(event))
    return result


def _split_shape(value: tf.Tensor, ndims: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the leading shape and the shape of an event, int32."""
    shape, rank = tf.shape(value), value.shape.rank
    end = (tf.rank(value) if rank is None else rank) - ndims
    return shape[:end], shape[end:]


def _static_batch(
    shape: tf.TensorShape, ndims: int, other_shape: tf.TensorShape, other_ndims: int
) -> tf.TensorShape:
    """Returns the static leading shape to which those of events and conditions broadcast."""
    try:
        return tf.broadcast_static_shape(_leading(shape, ndims), _leading(other_shape, other_ndims))
    except ValueError as error:
        raise ValueError(
            "expected leading shapes of events and conditional_input that broadcast, got "
            f"{shape} with {ndims} and {other_shape} with {other_ndims} event dimensions."
        ) from error


def _leading(shape: tf.TensorShape, ndims: int) -> tf.TensorShape:
    return shape if shape.rank is None else shape[: shape.rank - ndims]


def flatten_batch(events: tf.Tensor, event_ndims: int = 3) -> tf.Tensor:
    """Returns events with leading dimensions, [..., H, W, C], as one batch, [B, H, W, C]."""
    if events.shape.rank == 1 + event_ndims:
        return events
    batch = tf.reshape(events, tf.concat([[-1], tf.shape(events)[-event_ndims:]], axis=0))
    batch.set_shape([None, *events.shape[-event_ndims:]])
    return batch


def unflatten_batch(batch: tf.Tensor, like: tf.Tensor, event_ndims: int = 3) -> tf.Tensor:
    """Returns a batch, [B, H', W', C'], with the leading dimensions of `like` in place of B."""
    if like.shape.rank == 1 + event_ndims:
        return batch
    leading = tf.shape(like)[:-event_ndims]
    events = tf.reshape(batch, tf.concat([leading, tf.shape(batch)[1:]], axis=0))
    if like.shape.rank is not None:
        events.set_shape([*like.shape[:-event_ndims], *batch.shape[1:]])
    return events


def call_on_events(
    function: Callable[[tf.Tensor, Any], tuple[tf.Tensor, tf.Tensor]],
    events: tf.Tensor,
    event_ndims: int,
    condition: Any = None,
    condition_ndims: int | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `function(events, condition)`, without calling it for an empty batch.

    With oneDNN, TensorFlow's convolution of an empty batch has a wrong shape, and a matrix product
    without rows ends the process. The function gets one event in place of an empty batch, and its
    results are left out. Batches of known size that are not empty cost nothing.

    #### Example

    >>> import tensorflow as tf
    >>> from tfp_realnvp.internal.batch_dims import call_on_events
    >>> def function(events, condition):
    ...   print(events.shape)
    ...   return 2 * events, tf.reduce_sum(events, axis=-1)
    >>> value, log_det = call_on_events(function, tf.ones([0, 3]), event_ndims=1)
    (1, 3)
    >>> value.shape, log_det.shape
    (TensorShape([0, 3]), TensorShape([0]))

    Args:
      function: returns a value [..., *event] and a log det [...], of the leading shape to which
        those of events and condition broadcast.
      events: [..., *event].
      event_ndims: 3 for images, 1 for vectors.
      condition: a tensor, an array, a list or `None`; in any form if its rank is not known.
      condition_ndims: rank of one condition. `None` if it is not known: then the condition has to
        have the leading shape of the events.
    """
    is_declared = condition is not None and condition_ndims is not None
    condition_shape = tf.TensorShape(np.shape(condition) if is_declared else [])
    batches = [_leading(events.shape, event_ndims), _leading(condition_shape, condition_ndims or 0)]
    if all(batch.is_fully_defined() and 0 not in batch for batch in batches):
        return function(events, condition)
    static = _static_batch(events.shape, event_ndims, condition_shape, condition_ndims or 0)
    batch = tf.shape(events)[:-event_ndims]
    # A network that declares no condition can take a dictionary, for example.
    if is_declared or tf.is_tensor(condition) or isinstance(condition, np.ndarray):
        condition = tf.convert_to_tensor(condition)
        if is_declared:
            end = tf.rank(condition) - condition_ndims
            batch = tf.broadcast_dynamic_shape(batch, tf.shape(condition)[:end])
        condition = _without_empty_axes(condition)
    value, log_det = function(_without_empty_axes(events), condition)
    size = tf.concat([batch, [-1] * event_ndims], axis=0)
    result = tf.slice(value, tf.zeros_like(size), size)
    log_det = tf.slice(log_det, tf.zeros_like(batch), batch)
    if static.rank is not None:
        result.set_shape([*static, *value.shape[-event_ndims:]])
        log_det.set_shape(static)
    return result, log_det


def _without_empty_axes(values: tf.Tensor) -> tf.Tensor:
    """Returns a tensor whose axes of size 0 have size 1 instead.

    It is filled with 0.5, which is in the domain of most bijectors, or with the integer 0, which is
    a label.
    """
    missing = tf.cast(tf.equal(tf.shape(values), 0), tf.int32)
    paddings = tf.stack([tf.zeros_like(missing), missing], axis=1)
    filler = tf.constant(0.5 if values.dtype.is_floating else 0, values.dtype)
    filled = tf.pad(values, paddings, constant_values=filler)
    if values.shape.rank is not None:
        filled.set_shape([1 if size == 0 else size for size in values.shape])
    return filled
