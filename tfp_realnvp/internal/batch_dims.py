"""Reshapes leading sample and batch dimensions to the one batch dimension of networks."""

from __future__ import annotations

import tensorflow as tf

__all__ = ["broadcast_batch", "flatten_batch", "unflatten_batch"]


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
      condition_ndims: 3 for images, 1 for vectors.

    Raises:
      ValueError: if the leading dimensions do not broadcast.
    """
    return (
        _with_batch(event, event_ndims, condition, condition_ndims),
        _with_batch(condition, condition_ndims, event, event_ndims),
    )


def _with_batch(value: tf.Tensor, ndims: int, other: tf.Tensor, other_ndims: int) -> tf.Tensor:
    """Broadcasts the leading dimensions of `value` with the leading dimensions of `other`."""
    batch, other_batch = value.shape[:-ndims], other.shape[:-other_ndims]
    try:
        static = tf.broadcast_static_shape(batch, other_batch)
    except ValueError as error:
        raise ValueError(
            "expected leading shapes of events and conditional_input that broadcast, got "
            f"{value.shape} with {ndims} and {other.shape} with {other_ndims} event dimensions."
        ) from error
    if batch.is_fully_defined() and static == batch:
        return value
    dynamic = tf.broadcast_dynamic_shape(tf.shape(value)[:-ndims], tf.shape(other)[:-other_ndims])
    value = tf.broadcast_to(value, tf.concat([dynamic, tf.shape(value)[-ndims:]], axis=0))
    return tf.ensure_shape(value, [*static, *value.shape[-ndims:]])


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
