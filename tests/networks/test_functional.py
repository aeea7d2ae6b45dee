import logging

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf

from tfp_realnvp.networks.functional import batch_norm, weight_norm

pytestmark = [pytest.mark.quick, pytest.mark.core]

# Weight normalization.

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


def _weight_norm(kernel, scale):
    axes = list(range(scale.shape.rank - 1, kernel.shape.rank - 1))
    norm = tf.sqrt(tf.reduce_sum(kernel * kernel, axes, keepdims=True))
    return tf.reshape(scale, tf.shape(norm)) * kernel / norm


@pytest.mark.parametrize("name", _SHAPES)
def test_weight_norm_against_the_definition(name):
    arguments = _kernel_and_scale(name)
    upstream = ft.normal(arguments[0].shape, tf.float64, seed=3)

    def value_and_gradients(function):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            result = function(*arguments)
        return result, *tape.gradient(result, arguments, output_gradients=upstream)

    results = map(value_and_gradients, (weight_norm, _weight_norm))
    for actual, expected in zip(*results, strict=True):
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)


def test_a_filter_of_zeros_stays_zero():
    kernel, scale = _kernel_and_scale("stack", tf.float32)
    kernel *= tf.constant([1.0, 0.0, 1.0, 1.0, 1.0])
    with tf.GradientTape() as tape:
        tape.watch([kernel, scale])
        result = weight_norm(kernel, scale)
    np.testing.assert_array_equal(result[..., 1], tf.zeros_like(result[..., 1]))
    assert np.abs(result[..., 0]).min() > 0
    assert all(np.isfinite(gradient).all() for gradient in tape.gradient(result, [kernel, scale]))


# Batch normalization.

_OPTIONS = {"epsilon": 1e-3}


def _arguments(channels, dtype=tf.float32, shape=(4, 5, 6)):
    """Returns inputs, offset, moving mean and moving variance."""
    vector_dtype = tf.float64 if dtype == tf.float64 else tf.float32
    offset, mean, log_variance = (
        ft.normal([channels], vector_dtype, seed=seed) for seed in (1, 2, 3)
    )
    x = tf.cast(3 * ft.normal([*shape, channels], tf.float64) + 2, dtype)
    return [x, offset, mean, tf.exp(0.3 * log_variance)]


def _batch_norm(x, offset, moving_mean, moving_variance, training):
    """Returns the outputs, and the mean and variance that normalize the inputs."""
    if not training:
        y = (x - moving_mean) / tf.sqrt(moving_variance + _OPTIONS["epsilon"]) + offset
        return y, moving_mean, moving_variance
    mean = tf.reduce_mean(x, [0, 1, 2])
    variance = tf.reduce_mean((x - mean) ** 2, [0, 1, 2])
    y = (x - mean) / tf.sqrt(variance + _OPTIONS["epsilon"]) + offset
    return y, mean, variance


def _assert_close(actual, expected, tolerance):
    """Asserts that the difference is small beside the largest value."""
    actual = tf.cast(actual, tf.float64)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


_TOLERANCES = {tf.float32: 1e-5, tf.bfloat16: 2e-2, tf.float64: 1e-12}


@pytest.mark.parametrize("dtype", _TOLERANCES, ids=lambda dtype: dtype.name)
# One channel, a few, a vector of them, and more than one vector: the kernels differ.
@pytest.mark.parametrize("channels", [1, 3, 16, 24])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_against_the_definition(channels, dtype, training):
    arguments = _arguments(channels, dtype)
    exact = [tf.cast(each, tf.float64) for each in arguments]
    upstream = tf.cast(ft.normal(arguments[0].shape, tf.float64, seed=4), dtype)
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        outputs, *statistics = batch_norm(*arguments, training=training, **_OPTIONS)
    gradients = tape.gradient(outputs, arguments[:2], output_gradients=upstream)
    with tf.GradientTape() as tape:
        tape.watch(exact)
        y, *moving = _batch_norm(*exact, training)
    expected = tape.gradient(y, exact[:2], output_gradients=tf.cast(upstream, tf.float64))
    assert outputs.dtype == dtype
    for actual, value in zip([outputs, *gradients], [y, *expected], strict=True):
        _assert_close(actual, value, _TOLERANCES[dtype])
    # Statistics are in the dtype of the vectors, whatever that of the inputs.
    for actual, value in zip(statistics, moving, strict=True):
        assert actual.dtype == arguments[1].dtype
        _assert_close(actual, value, 1e-12 if dtype == tf.float64 else 1e-5)


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64], ids=lambda dtype: dtype.name)
def test_second_derivatives_while_training(dtype):
    x, *vectors = _arguments(3, dtype)
    weights = ft.normal(x.shape, dtype, seed=5)

    def second(function, x, weights):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = tf.reduce_sum(weights * function(x) ** 3)
            squared = tf.reduce_sum(tape.gradient(loss, x) ** 2)
        return outer.gradient(squared, x)

    function = lambda x: batch_norm(x, *vectors, training=True, **_OPTIONS)[0]  # noqa: E731
    actual = second(function, x, weights)
    x, weights, *exact = (tf.cast(each, tf.float64) for each in (x, weights, *vectors))
    expected = second(lambda x: _batch_norm(x, *exact, True)[0], x, weights)
    _assert_close(actual, expected, 1e-10 if dtype == tf.float64 else 1e-4)


@pytest.fixture
def tensorflow_log(caplog):
    """Returns a `caplog` of TensorFlow's logger, which does not pass its records on."""
    logger = logging.getLogger("tensorflow")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level("WARNING", logger.name):
            yield caplog
    finally:
        logger.removeHandler(caplog.handler)


def test_calls_of_many_shapes_log_no_warning(tensorflow_log):
    # More shapes than TensorFlow takes before it warns of traces, which are 5.
    for size in range(1, 8):
        weight_norm(tf.ones([2, size]), tf.ones([size]))
    assert [record.message for record in tensorflow_log.records] == []
