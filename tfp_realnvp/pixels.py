"""Conversions between integer gray levels and continuous pixel values, and bits per dimension."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_realnvp.internal import validation

__all__ = [
    "NoNoise",
    "UniformNoise",
    "bits_per_dim",
    "check_gray_levels",
    "condition_component",
    "dequantize",
    "evaluation_seed",
    "image_component",
    "largest_noise",
    "to_uint8",
    "uniform_noise",
]

# Training noise depends on the seed and the step. Evaluation noise has to differ from it.
_EVALUATION_STREAM = 0x5EED


def dequantize(
    images: tf.Tensor, seed: Any, dtype: Any = tf.float32, *, first: tf.Tensor | int = 0
) -> tf.Tensor:
    """Adds uniform noise to gray levels: `floor(images) + U[0, 1)`.

    For a density p over the result, `E[log p] <= log P` with the probability P of the integer
    images (Theis, van den Oord, Bethge 2016, section 3.1): the bits per dimension of the density
    are an upper bound on the bits per dimension of the integer images. Noise that images already
    contain is replaced.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> images = tf.constant([[3, 255]], tf.uint8)
    >>> noisy = tfr.dequantize(images, seed=(0, 1))
    >>> bool(tf.reduce_all(tf.floor(noisy) == tf.cast(images, tf.float32)))
    True

    Args:
      images: gray levels, of any shape and any integer or floating dtype.
      seed: two integers. Equal seeds give equal noise.
      dtype: dtype of the result, `tf.float32` or `tf.float64`.
      first: index of the first of these images in a larger batch, along the first axis. The noise
        is the corresponding part of the noise of the larger batch.

    Returns:
      Values in [0, n) for gray levels 0 … n - 1.

    Raises:
      ValueError: if `seed` is not two integers.
      TypeError: if `dtype` is not float32 or float64.
    """
    if tf.as_dtype(dtype) not in (tf.float32, tf.float64):
        # In half precision 255 has no fraction bits left for noise.
        raise TypeError(f"dequantize: expected dtype float32 or float64, got {dtype!r}.")
    seed = tf.convert_to_tensor(seed)
    if not (seed.dtype.is_integer and seed.shape.is_compatible_with([2])):
        raise ValueError(f"dequantize: expected two integers as seed, got {seed!r}.")
    levels = tf.floor(tf.cast(images, dtype))
    noise = uniform_noise(tf.shape(levels), seed, dtype, first=first)
    return levels + tf.minimum(noise, largest_noise(dtype))


def check_gray_levels(images: Any, caller: str, num_values: int | None = None) -> None:
    """Raises `ValueError` for images in [0, 1], which were divided by 255, and for unknown levels.

    Continuous gray levels such as 3.7 are allowed: `dequantize` replaces their fractions. Negative
    fractions are feature maps or the like.

    Args:
      images: a finite array or tensor.
      caller: name that begins the error message.
      num_values: number of gray levels of the model, if it is known.
    """
    images = np.asarray(images)
    low, high = images.min(), images.max()
    is_floating = tf.as_dtype(images.dtype).is_floating
    if is_floating and (high <= 1 or low < 0) and (images % 1).any():
        raise ValueError(
            f"{caller}: expected gray levels 0, 1, 2, …, got fractions up to {high}. "
            "Multiply images in [0, 1] by 255. For values without noise, pass dequantize=False to "
            "FlowModel."
        )
    if num_values is not None and not (low >= 0 and high < num_values):
        raise ValueError(
            f"{caller}: expected gray levels 0 to {num_values - 1}, those of the model, got values "
            f"from {low} to {high}. `num_values` of RealNVPImage and PixelLogit is the number of "
            "levels; `tfr.to_uint8` clips samples to them."
        )


@dataclasses.dataclass(frozen=True)
class UniformNoise:
    """`dequantize` in the form of `VariationalDequantization`.

    #### Example

    >>> import tensorflow as tf
    >>> from tfp_realnvp import pixels
    >>> values, log_q = pixels.UniformNoise(tf.float32).dequantize(tf.constant([[3]]), seed=(0, 1))
    >>> tf.floor(values).numpy().tolist(), log_q
    ([[3.0]], 0.0)

    Attributes:
      dtype: of the values.
    """

    dtype: Any

    def dequantize(
        self, images: tf.Tensor, seed: Any, *, first: tf.Tensor | int = 0, training: bool = False
    ) -> tuple[tf.Tensor, float]:
        """Returns values with noise, and the log density of the noise, 0; see `dequantize`."""
        del training
        return dequantize(images, seed, self.dtype, first=first), 0.0


@dataclasses.dataclass(frozen=True)
class NoNoise(UniformNoise):
    """Takes values as they are, in the form of `VariationalDequantization`."""

    def dequantize(
        self, images: tf.Tensor, seed: Any = None, **kwargs: Any
    ) -> tuple[tf.Tensor, float]:
        """Returns the values, and 0."""
        del seed, kwargs
        return tf.cast(images, self.dtype), 0.0


def largest_noise(dtype: Any) -> tf.Tensor:
    """Returns the largest noise below 1: 255 + (1 - 2⁻²⁴) would round to 256, the next level."""
    return tf.constant(1 - 2.0 ** (-11 if tf.as_dtype(dtype) == tf.float32 else -40), dtype)


def uniform_noise(
    shape: Any, seed: Any, dtype: Any = tf.float32, *, first: tf.Tensor | int = 0
) -> tf.Tensor:
    """Returns U[0, 1) noise: the rows from `first` on of the noise of a larger batch.

    #### Example

    >>> import tensorflow as tf
    >>> from tfp_realnvp import pixels
    >>> whole = pixels.uniform_noise([5, 2], (0, 1))
    >>> rest = pixels.uniform_noise([3, 2], (0, 1), first=tf.constant(2))
    >>> bool(tf.reduce_all(whole[2:] == rest))
    True

    Args:
      shape: shape of the result.
      seed: two integers.
      dtype: dtype of the result.
      first: index of the first row in the larger batch.
    """
    if isinstance(first, int) and first == 0:
        # The default algorithm depends on the device. (XLA derives a different key from the seed.)
        return tf.random.stateless_uniform(shape, seed=seed, dtype=dtype, alg="philox")
    return _later_noise(tf.convert_to_tensor(shape), seed, dtype, first)


def _later_noise(shape: tf.Tensor, seed: Any, dtype: Any, first: tf.Tensor | int) -> tf.Tensor:
    # Philox computes 16 bytes from each value of a counter, so that earlier noise can be skipped.
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    size, skipped = tf.reduce_prod(shape), tf.cast(first, tf.int64)
    skipped *= tf.cast(tf.reduce_prod(shape[1:]), tf.int64)
    per_count = 16 // tf.as_dtype(dtype).size
    counter += tf.cast(tf.stack([skipped // per_count, 0]), tf.uint64)
    rest = tf.cast(skipped % per_count, tf.int32)
    noise = tf.raw_ops.StatelessRandomUniformV2(
        shape=[rest + size],
        key=key,
        counter=counter,
        alg=tf.random.Algorithm.PHILOX.value,
        dtype=dtype,
    )
    return tf.reshape(noise[rest:], shape)


def evaluation_seed(seed: int, batch: Any, draw: int = 0) -> tf.Tensor:
    """Returns the seed of `dequantize` for one batch of an evaluation.

    All evaluations use this seed, so that they add the same noise.

    #### Example

    >>> from tfp_realnvp import pixels
    >>> pixels.evaluation_seed(seed=0, batch=1).numpy().tolist()
    [24301, 1]

    Args:
      seed: seed of the evaluation.
      batch: number of the batch, from 1.
      draw: number of the noise sample, from 0. `FlowModel.evaluate` uses only sample 0.

    Returns:
      Two integers, int32.
    """
    first = tf.stack([seed ^ _EVALUATION_STREAM, tf.cast(batch, tf.int32)])
    if draw == 0:
        return first
    return tf.random.experimental.stateless_fold_in(first, draw, alg="philox")


def image_component(data: Any) -> Any:
    """Returns the images of a batch with or without labels.

    #### Example

    >>> from tfp_realnvp import pixels
    >>> pixels.image_component(("images", "labels"))
    'images'
    >>> pixels.image_component({"image": "images", "label": 3})
    'images'

    Args:
      data: images, a tuple with images as first element, or a dictionary with images as `'image'`.

    Raises:
      ValueError: if a dictionary has no key `'image'`.
    """
    if isinstance(data, (tuple, list)):
        return image_component(data[0])
    if isinstance(data, dict):
        if "image" not in data:
            raise ValueError(f"expected a key 'image', got {sorted(data)}.")
        data = data["image"]
    return data


def condition_component(data: Any) -> Any:
    """Returns the condition of a batch, or `None`.

    #### Example

    >>> from tfp_realnvp import pixels
    >>> pixels.condition_component(("images", "labels"))
    'labels'
    >>> pixels.condition_component({"image": "images", "label": 3})
    3

    Args:
      data: images; a tuple of images and conditions; or a dictionary with the condition as
        `'conditional_input'`, or labels as `'label'`.
    """
    if isinstance(data, (tuple, list)):
        return data[1] if len(data) > 1 else condition_component(data[0])
    if isinstance(data, dict):
        return data.get("conditional_input", data.get("label"))
    return None


def to_uint8(images: Any, num_values: int = 256) -> np.ndarray:
    """Rounds continuous pixel values down to gray levels, clipped to [0, num_values).

    #### Example

    >>> import tfp_realnvp as tfr
    >>> tfr.to_uint8([-3.2, 7.9, 300.]).tolist()
    [0, 7, 255]

    Args:
      images: finite pixel values, of any shape.
      num_values: number of gray levels, at most 256.

    Returns:
      A uint8 array of the same shape.

    Raises:
      ValueError: if a value is not finite, or if `num_values` is above 256.
    """
    images = np.asarray(images)
    expected = "to_uint8: expected num_values in [1, 256]"
    validation.real(num_values, lambda number: 1 <= number <= 256, expected)
    if not np.isfinite(images).all():
        raise ValueError(
            f"to_uint8: expected finite values, got {np.count_nonzero(~np.isfinite(images))} that "
            "are not finite."
        )
    return np.clip(np.floor(images), 0, num_values - 1).astype(np.uint8)


def bits_per_dim(log_prob: tf.Tensor, num_dims: Any) -> tf.Tensor:
    """Returns `-log_prob / (num_dims ln 2)`, for log densities over pixel values.

    #### Example

    >>> import math, tensorflow as tf, tfp_realnvp as tfr
    >>> float(tfr.bits_per_dim(tf.constant(-10 * math.log(256.)), 10))   # uniform on [0, 256)
    8.0

    Args:
      log_prob: log densities in nats, of any shape.
      num_dims: D = height × width × channels.

    Returns:
      Bits per dimension, of the same shape.
    """
    log_prob = tf.convert_to_tensor(log_prob)
    return -log_prob / (tf.cast(num_dims, log_prob.dtype) * math.log(2.0))
