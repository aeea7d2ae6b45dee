"""Any leading sample and batch dimensions as the one that convolutions want."""

from __future__ import annotations

import tensorflow as tf

__all__ = ["flatten_batch", "unflatten_batch"]


def flatten_batch(images: tf.Tensor) -> tf.Tensor:
    """Returns images [..., H, W, C] as [B, H, W, C]."""
    if images.shape.rank == 4:
        return images
    batch = tf.reshape(images, tf.concat([[-1], tf.shape(images)[-3:]], axis=0))
    batch.set_shape([None, *images.shape[-3:]])
    return batch


def unflatten_batch(batch: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Returns [B, H', W', C'] with the leading dimensions of `like`, [..., H, W, C]."""
    if like.shape.rank == 4:
        return batch
    images = tf.reshape(batch, tf.concat([tf.shape(like)[:-3], tf.shape(batch)[1:]], axis=0))
    if like.shape.rank is not None:
        images.set_shape([*like.shape[:-3], *batch.shape[1:]])
    return images
