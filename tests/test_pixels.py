import math

import numpy as np
import pytest
import tensorflow as tf

import tfp_realnvp as tfr
from tfp_realnvp import pixels

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64], ids=lambda dtype: dtype.name)
def test_noise_stays_within_the_level(dtype):
    images = np.repeat(np.arange(256, dtype=np.uint8), 2000)
    noisy = tfr.dequantize(images, seed=(3, 4), dtype=dtype)
    assert noisy.dtype == dtype
    np.testing.assert_array_equal(np.floor(noisy), images)
    assert float(tf.reduce_max(noisy)) < 256


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64], ids=lambda dtype: dtype.name)
def test_the_largest_noise_stays_within_the_highest_level(dtype, monkeypatch):
    # A generator that returns the largest number below 1. Its sum with 255 rounds to 256.
    largest = np.nextafter(dtype.as_numpy_dtype(1), dtype.as_numpy_dtype(0))
    monkeypatch.setattr(tf.random, "stateless_uniform", lambda shape, **_: tf.fill(shape, largest))
    noisy = tfr.dequantize(np.array([[0, 255]], np.uint8), seed=(0, 0), dtype=dtype)
    np.testing.assert_array_equal(np.floor(noisy), [[0, 255]])


def test_noise_is_uniform():
    noise = tfr.dequantize(np.zeros([100_000]), seed=(0, 1)).numpy()
    counts, _ = np.histogram(noise, bins=10, range=(0, 1))
    np.testing.assert_allclose(counts, 10_000, rtol=0.05)


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64], ids=lambda dtype: dtype.name)
def test_noise_is_the_same_in_a_function(dtype):
    images = np.arange(100, dtype=np.uint8)
    function = tf.function(lambda seed: tfr.dequantize(images, seed, dtype))
    expected = tfr.dequantize(images, seed=(0, 1), dtype=dtype)
    np.testing.assert_array_equal(function(tf.constant([0, 1])), expected)


def test_noise_under_xla():
    # XLA generates different numbers from the same seed, but is deterministic.
    images = np.repeat(np.arange(256, dtype=np.uint8), 100)
    function = tf.function(lambda seed: tfr.dequantize(images, seed), jit_compile=True)
    noisy = function(tf.constant([0, 1]))
    np.testing.assert_array_equal(np.floor(noisy), images)
    np.testing.assert_array_equal(function(tf.constant([0, 1])), noisy)
    assert np.abs(function(tf.constant([0, 2])) - noisy).max() > 0.1


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.float32, np.float64])
def test_gray_levels_of_any_dtype(kind):
    images = np.arange(256).astype(kind)
    expected = tfr.dequantize(np.arange(256, dtype=np.uint8), seed=(0, 1))
    np.testing.assert_array_equal(tfr.dequantize(images, seed=(0, 1)), expected)
    # Noise is replaced.
    np.testing.assert_array_equal(tfr.dequantize(expected, seed=(0, 1)), expected)
    np.testing.assert_array_equal(tfr.to_uint8(expected), np.arange(256))


def test_to_uint8():
    values = [-1000, -0.01, 0, 0.999, 1, 254.999, 255.999, 256, 1e6]
    assert tfr.to_uint8(values).tolist() == [0, 0, 0, 0, 1, 254, 255, 255, 255]
    assert tfr.to_uint8(values, num_values=17).max() == 16
    assert tfr.to_uint8(tf.constant(values)).dtype == np.uint8
    images = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(tfr.to_uint8(images), images)


def test_errors_of_to_uint8():
    with pytest.raises(ValueError, match="expected finite values, got 2 that are not"):
        tfr.to_uint8([0.0, np.nan, -np.inf])
    with pytest.raises(ValueError, match=r"num_values in \[1, 256\], got 257"):
        tfr.to_uint8([0.0], 257)


def test_bits_per_dim():
    log_prob = tf.constant([0.0, -math.log(2.0), -48 * math.log(256)])
    np.testing.assert_allclose(tfr.bits_per_dim(log_prob, 48), [0, 1 / 48, 8], rtol=1e-6)
    double = tfr.bits_per_dim(tf.cast(-48 * math.log(256), tf.float64), tf.constant(48))
    assert double.dtype == tf.float64
    np.testing.assert_allclose(double, 8, rtol=1e-7)


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
@pytest.mark.parametrize("image_shape", [(4, 4, 3), (3, 3, 1)])
def test_noise_of_a_part_of_a_batch(image_shape, dtype):
    # Philox generates 4 float32 or 2 float64 numbers at a time; 3 × 3 is not a multiple.
    images = tf.zeros([6, *image_shape])
    whole = tfr.dequantize(images, (3, 5), dtype)
    for first in range(1, 6):
        part = tfr.dequantize(images[first:], (3, 5), dtype, first=tf.constant(first))
        np.testing.assert_array_equal(part, whole[first:])


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_noise_near_one_of_many_levels(dtype):
    levels = tf.range(65536)
    for noise in (0.0, 0.5, 1 - 2.0**-24, 1.0):
        values, _ = pixels.UniformNoise(dtype).add_noise(
            levels, lambda x, n=noise: tf.fill(x.shape, tf.cast(n, x.dtype))
        )
        np.testing.assert_array_equal(tf.floor(values), levels)
    values = tfr.dequantize(levels, (0, 1), dtype)
    np.testing.assert_array_equal(tf.floor(values), levels)


def test_many_gray_levels_in_float32():
    logit = tfr.PixelLogit(num_values=65536)
    levels = tf.reshape(tf.range(65536), [16, 64, 64, 1])
    values = tfr.dequantize(levels, (0, 1))
    restored = logit.forward(tf.identity(logit.inverse(values)))
    assert np.isfinite(restored).all()
    np.testing.assert_allclose(restored, values, atol=0.05)
