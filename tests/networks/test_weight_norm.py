import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf

from tfp_realnvp.networks.functional import convolve, weight_norm

pytestmark = [pytest.mark.quick, pytest.mark.core]

_SHAPES = {
    "matrix": ([3, 5], [5]),
    "kernel": ([3, 3, 2, 5], [5]),
    "stack": ([4, 3, 3, 2, 5], [4, 5]),
    "two_axes": ([2, 4, 1, 1, 2, 5], [2, 4, 5]),
}


def _kernel_and_scale(name, dtype=tf.float64):
    kernel_shape, scale_shape = _SHAPES[name]
    scale = 0.5 + tf.abs(ft.normal(scale_shape, dtype, seed=1))
    return ft.normal(kernel_shape, dtype), scale * tf.sign(ft.normal(scale_shape, dtype, seed=2))


def _definition(kernel, scale):
    axes = list(range(scale.shape.rank - 1, kernel.shape.rank - 1))
    norm = tf.sqrt(tf.reduce_sum(kernel * kernel, axes, keepdims=True))
    return tf.reshape(scale, tf.shape(norm)) * kernel / norm


@pytest.mark.parametrize("name", _SHAPES)
def test_against_the_definition(name):
    arguments = _kernel_and_scale(name)
    upstream = ft.normal(arguments[0].shape, tf.float64, seed=3)

    def value_and_gradients(function):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            result = function(*arguments)
        return result, *tape.gradient(result, arguments, output_gradients=upstream)

    results = map(value_and_gradients, (weight_norm, _definition))
    for actual, expected in zip(*results, strict=True):
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)


def test_second_derivatives_against_differences():
    arguments = _kernel_and_scale("stack")
    weights = [ft.normal(each.shape, tf.float64, seed=4 + i) for i, each in enumerate(arguments)]
    upstream = ft.normal(arguments[0].shape, tf.float64, seed=3)

    def weighted_gradient(kernel, scale):
        with tf.GradientTape() as tape:
            tape.watch([kernel, scale])
            result = tf.reduce_sum(upstream * weight_norm(kernel, scale) ** 2)
        gradients = tape.gradient(result, [kernel, scale])
        return tf.add_n([tf.reduce_sum(w * g) for w, g in zip(weights, gradients, strict=True)])

    with tf.GradientTape() as tape:
        tape.watch(arguments)
        value = weighted_gradient(*arguments)
    gradients = tape.gradient(value, arguments)
    for index, gradient in enumerate(gradients):
        direction = ft.normal(gradient.shape, tf.float64, seed=6)
        ends = []
        for step in (1e-6, -1e-6):
            moved = list(arguments)
            moved[index] += step * direction
            ends.append(weighted_gradient(*moved))
        expected = float(ends[0] - ends[1]) / 2e-6
        assert abs(expected) > 0.1
        np.testing.assert_allclose(tf.reduce_sum(gradient * direction), expected, rtol=1e-6)


def test_a_filter_of_zeros_stays_zero():
    kernel, scale = _kernel_and_scale("stack", tf.float32)
    kernel *= tf.constant([1.0, 0.0, 1.0, 1.0, 1.0])
    with tf.GradientTape() as tape:
        tape.watch([kernel, scale])
        result = weight_norm(kernel, scale)
    np.testing.assert_array_equal(result[..., 1], tf.zeros_like(result[..., 1]))
    assert np.abs(result[..., 0]).min() > 0
    assert all(np.isfinite(gradient).all() for gradient in tape.gradient(result, [kernel, scale]))


def test_a_convolution_computes_in_the_precision_of_its_inputs():
    x, kernel, bias = ft.normal([2, 4, 4, 2]), ft.normal([3, 3, 2, 5], seed=1), ft.normal([5])
    half = convolve(tf.cast(x, tf.bfloat16), kernel, bias)
    assert half.dtype == tf.bfloat16
    half = tf.cast(half, tf.float32)
    np.testing.assert_allclose(half, convolve(x, kernel, bias), rtol=0.05, atol=0.1)
