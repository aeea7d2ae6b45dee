"""Any leading sample and batch dimensions as the one that convolutions want."""

from __future__ import annotations

import tensorflow as tf

__all__ = ["broadcast_batch", "flatten_batch", "unflatten_batch"]


def broadcast_batch(
    image: tf.Tensor, condition: tf.Tensor, condition_ndims: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns both with equal leading dimensions, those that theirs broadcast to.

    #### Example

    >>> import tensorflow as tf
    >>> image, condition = broadcast_batch(tf.ones([5, 4, 4, 1]), tf.ones([3, 1, 8]), 1)
    >>> image.shape, condition.shape
    (TensorShape([3, 5, 4, 4, 1]), TensorShape([3, 5, 8]))

    Args:
      image: [..., H, W, C].
      condition: its last `condition_ndims` dimensions are the condition of one image.
      condition_ndims: 1 for a vector, 3 for an image.

    Raises:
      ValueError: if they do not broadcast.
    """
    return _with_batch(image, 3, condition, condition_ndims), _with_batch(
        condition, condition_ndims, image, 3
    )


def _with_batch(value: tf.Tensor, ndims: int, other: tf.Tensor, other_ndims: int) -> tf.Tensor:
    """Broadcasts the leading dimensions of `value` with those of `other`."""
    batch, other_batch = value.shape[:-ndims], other.shape[:-other_ndims]
    try:
        static = tf.broadcast_static_shape(batch, other_batch)
    except ValueError as error:
        raise ValueError(
            "expected leading shapes of images and conditional_input that broadcast, got "
            f"{value.shape} with {ndims} and {other.shape} with {other_ndims} event dimensions."
        ) from error
    if batch.is_fully_defined() and static == batch:
        return value
    dynamic = tf.broadcast_dynamic_shape(tf.shape(value)[:-ndims], tf.shape(other)[:-other_ndims])
    value = tf.broadcast_to(value, tf.concat([dynamic, tf.shape(value)[-ndims:]], axis=0))
    return tf.ensure_shape(value, [*static, *value.shape[-ndims:]])


def flatten_batch(values: tf.Tensor, event_ndims: int = 3) -> tf.Tensor:
    """Returns images [..., H, W, C] as [B, H, W, C], or other events as one batch of them."""
    if values.shape.rank == 1 + event_ndims:
        return values
    batch = tf.reshape(values, tf.concat([[-1], tf.shape(values)[-event_ndims:]], axis=0))
    batch.set_shape([None, *values.shape[-event_ndims:]])
    return batch


def unflatten_batch(batch: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Returns [B, H', W', C'] with the leading dimensions of `like`, [..., H, W, C]."""
    if like.shape.rank == 4:
        return batch
    images = tf.reshape(batch, tf.concat([tf.shape(like)[:-3], tf.shape(batch)[1:]], axis=0))
    if like.shape.rank is not None:
        images.set_shape([*like.shape[:-3], *batch.shape[1:]])
    return images
