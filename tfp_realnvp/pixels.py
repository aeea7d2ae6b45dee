"""Converts between gray levels and continuous pixel values, and log densities to bits/dim."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_realnvp.internal import streams, validation


def dequantize(
    images: tf.Tensor, seed: Any, dtype: Any = tf.float32, *, first: tf.Tensor | int = 0
) -> tf.Tensor:
    """Adds uniform noise to gray levels: `floor(images) + U[0, 1)`.

    Let p be a density of the result, and P the probability of the integer images under p. Then
    `E[log p] <= log P`, so bits per dimension of p are an upper bound for the integer images
    (Theis, van den Oord, Bethge 2016, section 3.1).

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> images = tf.constant([[3, 255]], tf.uint8)
    >>> noisy = tfr.dequantize(images, seed=(0, 1))
    >>> bool(tf.reduce_all(tf.floor(noisy) == tf.cast(images, tf.float32)))
    True

    Args:
      images: gray levels of any shape, and any integer or floating dtype. Fractions are dropped.
        For levels near n, noise is a multiple of about n 2^-24, or n 2^-53 if `dtype` is float64.
      seed: two integers. Equal seeds give equal noise.
      dtype: dtype of the result, `tf.float32` or `tf.float64`.
      first: for a part of a larger batch, the index of its first image, so that the part gets the
        same noise as in the whole batch.

    Raises:
      TypeError: if `dtype` is not float32 or float64.
    """
    # In half precision, a value of 255 has no bits left for noise.
    dtype = validation.float_dtype(dtype, "dequantize")
    noise_fn = functools.partial(batch_noise, seed=seed, first=first)
    return UniformNoise(dtype).add_noise(images, noise_fn)[0]


def check_continuous(images: Any, caller: str, num_values: int | None = None) -> None:
    """Raises `ValueError` for gray levels without noise, and for gray levels divided by 255."""
    _raise_first(continuous_conditions(images, num_values), images, caller)


def continuous_conditions(images: Any, num_values: int | None = None) -> list[tuple[Any, str, str]]:
    """Returns the checks of `check_continuous`, each as (is_valid, expected, advice)."""
    images, levels = tf.convert_to_tensor(images), (num_values or 256) - 1
    expected = f"expected continuous pixel values, got gray levels ({images.dtype.name})"
    advice = "`tfr.dequantize(images, seed=(0, 1))` adds noise, and `predict`, `tfr.log_prob` and "
    advice += "an exported `log_prob_uint8` take gray levels."
    if not images.dtype.is_floating:
        return [(tf.constant(False), expected, advice)]
    # Noise has no such values: all of them are multiples of 1 / 255, but for rounding.
    multiples = images * levels
    are_multiples = tf.reduce_all(tf.abs(multiples - tf.round(multiples)) < 1e-3)
    are_scaled = are_multiples & (tf.size(images) > 0) & (tf.reduce_max(tf.abs(images)) <= 1)
    scaled = f"expected continuous pixel values from 0 to {levels + 1}, got gray levels divided by "
    scaled += str(levels)
    whole = (~are_whole(images), expected, advice)
    return [whole, (~are_scaled, scaled, f"Multiply them by {levels}, then: {advice}")]


def are_whole(values: tf.Tensor) -> tf.Tensor:
    """Returns whether all values are whole numbers, and there are any."""
    values = tf.convert_to_tensor(values)
    if not values.dtype.is_floating:
        return tf.size(values) > 0
    return (tf.size(values) > 0) & tf.reduce_all(tf.equal(values, tf.floor(values)))


def check_gray_levels(images: Any, caller: str, num_values: int | None = None) -> None:
    """Raises `ValueError` if images are not gray levels 0, …, `num_values - 1`.

    Fractions are allowed, because `dequantize` replaces them. Fractions are an error if all values
    are at most 1, as after a division by 255, or if some values are negative.
    """
    _raise_first(gray_level_conditions(images, num_values), images, caller)


def _raise_first(conditions: list[tuple[Any, str, str]], images: Any, caller: str) -> None:
    for is_valid, expected, advice in conditions:
        if not bool(is_valid):
            low, high = np.min(images), np.max(images)
            raise ValueError(f"{caller}: {expected}, got values from {low} to {high}. {advice}")


def gray_level_conditions(images: Any, num_values: int | None = None) -> list[tuple[Any, str, str]]:
    """Returns the checks of `check_gray_levels`, each as (is_valid, expected, advice)."""
    dtype = tf.as_dtype(images.dtype)
    conditions: list[tuple[Any, str, str]] = []
    if dtype == tf.bool or (dtype == tf.uint8 and (num_values is None or num_values >= 256)):
        return conditions
    is_tensor = tf.is_tensor(images)
    if is_tensor and not dtype.is_floating:
        images = tf.cast(images, tf.float32)  # a GPU has no minimum of uint8
    minimum, maximum = (tf.reduce_min, tf.reduce_max) if is_tensor else (np.min, np.max)
    any_of, floor = (tf.reduce_any, tf.floor) if is_tensor else (np.any, np.floor)
    low, high = minimum(images), maximum(images)
    if dtype.is_floating:
        are_fractions = any_of(images != floor(images))
        is_valid = ~(are_fractions & ((high <= 1) | (low < 0)))
        advice = (
            "Leave out `Rescaling(1 / 255)`, `/ 255` or `/ 127.5 - 1`, since the model scales gray "
            "levels itself: multiply images in [0, 1] by 255. For values without noise, pass "
            "dequantize=False to FlowModel, and alpha=None to RealNVPImage."
        )
        conditions.append((is_valid, "expected gray levels 0, 1, 2, … and no fractions", advice))
    if num_values is not None:
        expected = f"expected gray levels 0 to {num_values - 1}, the levels of the model"
        advice = "`num_values` of RealNVPImage and PixelLogit is the number of levels; "
        advice += "`tfr.to_uint8` clips samples to them."
        conditions.append(((high < num_values) & (low >= 0), expected, advice))
    return conditions


@dataclasses.dataclass(frozen=True)
class UniformNoise:
    """Adds uniform noise to gray levels; has the interface of `VariationalDequantization`."""

    dtype: Any

    def add_noise(
        self, images: tf.Tensor, noise_fn: Callable[[tf.Tensor], tf.Tensor], training: bool = False
    ) -> tuple[tf.Tensor, Any]:
        """Adds the U[0, 1) noise `noise_fn(levels)`; also returns the noise's log density, 0."""
        levels = tf.floor(tf.cast(images, self.dtype))
        return add_fractions(levels, noise_fn(levels)), 0.0


@dataclasses.dataclass(frozen=True)
class NoNoise:
    """Adds no noise to continuous values; has the interface of `VariationalDequantization`."""

    dtype: Any

    def add_noise(
        self, images: tf.Tensor, noise_fn: Any = None, training: bool = False
    ) -> tuple[tf.Tensor, Any]:
        """Returns the values, and 0 as the log density of the noise."""
        return tf.cast(images, self.dtype), 0.0


def add_fractions(levels: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
    """Returns `levels + noise` for noise in [0, 1], rounded to a value below the next level.

    Levels are whole numbers, in float32 between -2²² and 2²², in float64 between -2⁵¹ and 2⁵¹.
    """
    # The bound lies one or two floats below the next level, so the sum with it is exact.
    epsilon = np.finfo(levels.dtype.as_numpy_dtype).eps
    return levels + tf.minimum(noise, 1 - epsilon * (1 + tf.abs(levels)))


def batch_noise(levels: tf.Tensor, seed: Any, *, first: tf.Tensor | int = 0) -> tf.Tensor:
    """Returns U[0, 1) noise for training, with the shape and dtype of `levels`, [B, ...].

    `seed` and `first` are as in `dequantize`.
    """
    shape, dtype = tf.shape(levels), levels.dtype
    if isinstance(first, int) and first == 0:
        # The default algorithm would depend on the device. (XLA derives another key from the seed.)
        return tf.random.stateless_uniform(shape, seed=seed, dtype=dtype, alg="philox")
    # Philox computes 16 random bytes per counter value. Start the counter behind the bytes of
    # earlier events.
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    skipped = tf.cast(first, tf.int64) * tf.cast(tf.reduce_prod(shape[1:]), tf.int64)
    per_count = 16 // dtype.size
    counter += tf.cast(tf.stack([skipped // per_count, 0]), tf.uint64)
    rest = tf.cast(skipped % per_count, tf.int32)
    noise = tf.raw_ops.StatelessRandomUniformV2(
        shape=[rest + tf.size(levels)],
        key=key,
        counter=counter,
        alg=tf.random.Algorithm.PHILOX.value,
        dtype=dtype,
    )
    return tf.reshape(noise[rest:], shape)


def event_noise(levels: tf.Tensor, seed: Any, draw: Any = 0) -> tf.Tensor:
    """Returns U[0, 1) noise for evaluation, with the shape and dtype of `levels`, [B, ...].

    The noise of an event depends only on the int32 `seed`, the index `draw` of the noise sample,
    and the event's gray levels. A hash of seed, draw and gray levels is the state of a SplitMix64
    stream. All devices compute the same numbers.

    Source: Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014, section 5.
    """
    shape = tf.shape(levels)
    # `tf.reshape(levels, [shape[0], -1])` would fail for an empty batch.
    values = tf.reshape(levels, [shape[0], tf.reduce_prod(shape[1:])])
    values = tf.cast(tf.cast(values, tf.int64), tf.uint64)
    step = tf.constant(0x9E3779B97F4A7C15, tf.uint64)
    steps = step * tf.cast(tf.range(1, tf.shape(values)[1] + 1), tf.uint64)
    # GPUs cannot sum uint64. Sums of int64 and uint64 have the same bits.
    hashes = tf.bitcast(_mix64(values + steps), tf.int64)
    state = tf.bitcast(tf.reduce_sum(hashes, axis=1, keepdims=True), tf.uint64)
    for number in (seed ^ streams.EVALUATION_NOISE, draw):
        state = _mix64(state + step + tf.cast(tf.cast(number, tf.int64), tf.uint64))
    bits = _mix64(state + steps)
    precision = 24 if levels.dtype == tf.float32 else 53
    high_bits = tf.bitwise.right_shift(bits, tf.constant(64 - precision, tf.uint64))
    return tf.reshape(tf.cast(high_bits, levels.dtype) * 2.0**-precision, shape)


def _mix64(state: tf.Tensor) -> tf.Tensor:
    """Maps uint64 states of SplitMix64 to their outputs. The map is a bijection."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state ^= tf.bitwise.right_shift(state, tf.constant(shift, tf.uint64))
        state *= tf.constant(factor, tf.uint64)
    return state ^ tf.bitwise.right_shift(state, tf.constant(31, tf.uint64))


def to_uint8(images: Any, num_values: int = 256) -> np.ndarray:
    """Rounds continuous pixel values down to gray levels, and clips them to [0, num_values).

    #### Example

    >>> import tfp_realnvp as tfr
    >>> tfr.to_uint8([-3.2, 7.9, 300.]).tolist()
    [0, 7, 255]

    Args:
      images: finite pixel values, of any shape.
      num_values: number of gray levels, at most 256.

    Raises:
      ValueError: if a value is not finite, or `num_values` is above 256.
    """
    images = np.asarray(images)
    validation.integer(num_values, 1, "to_uint8: expected num_values in [1, 256]", 257)
    if number := np.count_nonzero(~np.isfinite(images)):
        raise ValueError(f"to_uint8: expected finite values, got {number} that are not finite.")
    return np.clip(np.floor(images), 0, num_values - 1).astype(np.uint8)


def bits_per_dim(log_prob: tf.Tensor, num_dims: Any) -> tf.Tensor:
    """Converts log densities of images to bits/dim: `-log_prob / (num_dims ln 2)`.

    To evaluate a model on images, use `tfr.evaluation.bits_per_dim`.

    #### Example

    >>> import math, tensorflow as tf, tfp_realnvp as tfr
    >>> float(tfr.bits_per_dim(tf.constant(-10 * math.log(256.)), 10))   # uniform on [0, 256)
    8.0

    Args:
      log_prob: log densities in nats, of any shape.
      num_dims: D = height × width × channels.
    """
    log_prob = tf.convert_to_tensor(log_prob)
    return -log_prob / (tf.cast(num_dims, log_prob.dtype) * math.log(2.0))
