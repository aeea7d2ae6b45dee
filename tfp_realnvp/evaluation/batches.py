"""Checked batches of gray levels, and their noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp import pixels
from tfp_realnvp.distributions import VariationalDequantization
from tfp_realnvp.internal import validation
from tfp_realnvp.internal.tf_data import without_autotune

__all__ = ["checked_arguments", "checked_levels", "image_batches", "noisy_function"]

tfd = tfp.distributions


def checked_arguments(
    caller: str, num_draws: int, batch_size: int, seed: int
) -> tuple[int, int, int]:
    """Returns the arguments as integers, or raises `ValueError` if one is out of range."""
    num_draws, batch_size = (
        validation.integer(value, 1, f"{caller}: expected {argument} of at least 1")
        for argument, value in (("num_draws", num_draws), ("batch_size", batch_size))
    )
    int32 = range(-(2**31), 2**31)
    seed = validation.real(seed, lambda x: x in int32, f"{caller}: expected an int32 seed")
    return num_draws, batch_size, int(seed)


def image_batches(caller: str, data: Any, batch_size: int) -> Iterator[tuple[np.ndarray, Any]]:
    """Yields batches of images with their conditions or labels, or with `None`."""
    if isinstance(data, tf.data.Dataset):
        if data.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError(f"{caller}: expected a finite dataset, got an infinite one.")
        for batch in without_autotune(data).as_numpy_iterator():
            yield np.asarray(pixels.image_component(batch)), pixels.condition_component(batch)
        return
    images, conditions = np.asarray(pixels.image_component(data)), pixels.condition_component(data)
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        yield images[part], None if conditions is None else np.asarray(conditions)[part]


def checked_levels(
    caller: str, images: np.ndarray, event_shape: tf.TensorShape, number: int
) -> np.ndarray:
    """Returns images, or raises a `ValueError` if they are not gray levels of this shape."""
    if images.ndim != 4 or not event_shape.is_compatible_with(images.shape[1:]):
        raise ValueError(
            f"{caller}: expected images [batch, {', '.join(map(str, event_shape))}], got "
            f"shape {images.shape} in batch {number}."
        )
    if not np.isfinite(images).all():
        raise ValueError(f"{caller}: expected finite gray levels in batch {number}.")
    pixels.check_gray_levels(images, caller)
    return images


def noisy_function(
    distribution: tfd.Distribution, dequantizer: VariationalDequantization | None
) -> Callable[..., tuple[tf.Tensor, Any]]:
    """Returns a function of gray levels and a seed, to values and the log density of the noise."""
    if dequantizer is None:
        return lambda levels, seed: (pixels.dequantize(levels, seed, distribution.dtype), 0.0)
    noisy_fn = tf.function(dequantizer.dequantize, autograph=False)
    return lambda levels, seed: noisy_fn(tf.constant(levels), seed)
