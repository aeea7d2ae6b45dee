import math

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr

pytestmark = pytest.mark.quick


def _images(values, dtype=tf.float64):
    return tf.reshape(tf.constant(values, dtype), [-1, 1, 1, 1])


@pytest.mark.parametrize(("alpha", "num_values"), [(0.05, 256), (0.05, 17), (1e-6, 2), (0.3, 256)])
def test_the_formula_of_the_paper(alpha, num_values):
    # In Python's own double precision, one number at a time.
    logit = tfr.PixelLogit(alpha, num_values, dtype=tf.float64)
    for y in np.linspace(0, num_values, 23):
        p = alpha + (1 - 2 * alpha) * y / num_values
        x, ildj = logit.inverse_and_log_det(_images([y]))
        slope = (1 - 2 * alpha) / num_values / (p * (1 - p))
        assert float(x[0, 0, 0, 0]) == pytest.approx(math.log(p / (1 - p)), rel=1e-9, abs=1e-12)
        assert float(ildj[0]) == pytest.approx(math.log(slope), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("num_values", [2, 17, 256])
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64], ids=lambda dtype: dtype.name)
def test_finite_up_to_the_ends_of_the_interval(dtype, num_values):
    logit = tfr.PixelLogit(num_values=num_values, dtype=dtype)
    low, high = (dtype.as_numpy_dtype(end) for end in (logit.low, logit.high))
    ends = _images([np.nextafter(low, high), np.nextafter(high, low)], dtype)
    x, ildj = logit.inverse_and_log_det(ends)
    assert np.isfinite(x).all() and np.isfinite(ildj).all()
    assert float(x[0, 0, 0, 0]) < -10 and float(x[1, 0, 0, 0]) > 10
    # And back, to where they came from.
    y, fldj = logit.forward_and_log_det(tf.identity(x))
    assert np.isfinite(fldj).all()
    np.testing.assert_allclose(y, ends, rtol=4 * np.finfo(dtype.as_numpy_dtype).eps)


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64], ids=lambda dtype: dtype.name)
def test_latents_far_out_stay_invertible(dtype):
    logit = tfr.PixelLogit(dtype=dtype)
    x = _images([-1e4, -100, -40, 40, 100, 1e4], dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y, fldj = logit.forward_and_log_det(x)
        loss = tf.reduce_sum(y) + tf.reduce_sum(fldj)
    assert np.isfinite(fldj).all() and np.isfinite(tape.gradient(loss, x)).all()
    assert (logit.low < y.numpy()).all() and (y.numpy() < logit.high).all()
    back, ildj = logit.inverse_and_log_det(tf.identity(y))
    assert np.isfinite(back).all() and np.isfinite(ildj).all()
    np.testing.assert_array_equal(np.sign(back), np.sign(x))


def test_float32_is_as_exact_as_its_numbers():
    pixels = np.linspace(0, 255.99, 1001)
    exact = tfr.PixelLogit(dtype=tf.float64)
    # The rounding of the pixels themselves is not the bijector's.
    rounded = pixels.astype(np.float32).astype(np.float64)
    x, ildj = tfr.PixelLogit().inverse_and_log_det(_images(pixels, tf.float32))
    expected_x, expected_ildj = exact.inverse_and_log_det(_images(rounded))
    np.testing.assert_allclose(x, expected_x, atol=2e-6)
    np.testing.assert_allclose(ildj, expected_ildj, atol=4e-6)


# Log densities, beside known ones.


@pytest.mark.parametrize("num_values", [256, 17])
@pytest.mark.parametrize(("dtype", "tolerance"), [(tf.float32, 1e-5), (tf.float64, 1e-12)])
def test_uniform_pixels_cost_log2_of_the_grey_levels(num_values, dtype, tolerance):
    shape = [8, 8, 3]
    logit = tfr.PixelLogit(num_values=num_values, dtype=dtype)
    uniform = tfd.Sample(tfd.Uniform(tf.zeros([], dtype), tf.constant(num_values, dtype)), shape)
    # The density of the logits of uniform pixels, by TFP's own bijectors.
    alpha = tf.constant(0.05, dtype)
    scale = tfb.Scale((1 - 2 * alpha) / tf.cast(num_values, dtype))
    to_logits = tfb.Chain([tfb.Invert(tfb.Sigmoid()), tfb.Shift(alpha), scale])
    logits = tfd.TransformedDistribution(uniform, to_logits)
    flow = tfd.TransformedDistribution(logits, logit)
    images = ft.pixels([4, *shape], dtype) * (num_values / 256)
    bits = tfr.bits_per_dim(flow.log_prob(images), np.prod(shape))
    np.testing.assert_allclose(bits, math.log2(num_values), rtol=tolerance)
