import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf

from tfp_realnvp.networks import BatchNorm


def _layer(channels, **kwargs):
    layer = BatchNorm(momentum=0.8, epsilon=1e-3, **kwargs)
    layer.build((None, None, None, channels))
    return ft.randomize(layer)


# Few channels, one vector of them, and more: the kernels differ.
@pytest.mark.parametrize("channels", [1, 3, 16, 24])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "float64"])
def test_training_against_the_definition(channels, dtype):
    layer = _layer(channels, dtype=dtype)
    compute = tf.as_dtype(layer.compute_dtype)
    x = tf.cast(3 * ft.normal([4, 5, 6, channels], tf.float64) + 2, compute)
    exact = tf.cast(x, tf.float64)
    offset, moving_mean, moving_variance = (np.float64(v.numpy()) for v in layer.variables)
    upstream = tf.cast(ft.normal(x.shape, tf.float64, seed=1), compute)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
    gradients = tape.gradient(y, [x, layer.offset.value], output_gradients=upstream)
    with tf.GradientTape() as tape:
        inputs = [exact, tf.constant(offset)]
        tape.watch(inputs)
        mean, variance = tf.nn.moments(exact, [0, 1, 2])
        expected = (exact - mean) / tf.sqrt(variance + 1e-3) + inputs[1]
    expected_gradients = tape.gradient(
        expected, inputs, output_gradients=tf.cast(upstream, tf.float64)
    )
    assert y.dtype == compute
    tolerance = {"float32": 1e-5, "mixed_bfloat16": 2e-2, "float64": 1e-12}[dtype]
    for ours, theirs in zip([y, *gradients], [expected, *expected_gradients], strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(tf.cast(ours, tf.float64), theirs, atol=tolerance * scale)
    # Statistics are float32 whatever the network computes in.
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    unbiased = variance * 120 / 119
    np.testing.assert_allclose(
        layer.moving_mean, 0.8 * moving_mean + 0.2 * mean, rtol=tolerance, atol=tolerance
    )
    np.testing.assert_allclose(
        layer.moving_variance, 0.8 * moving_variance + 0.2 * unbiased, rtol=tolerance
    )


@pytest.mark.parametrize("channels", [3, 16])
def test_training_with_a_size_that_is_known_late(channels):
    layer, again = _layer(channels), _layer(channels)
    again.set_weights(layer.get_weights())
    signature = [tf.TensorSpec([None, None, None, channels], tf.float32)]
    late = tf.function(lambda x: layer(x, training=True), input_signature=signature)
    for shape in ((4, 3, 5), (1, 2, 2), (1, 1, 1)):
        x = ft.normal([*shape, channels])
        np.testing.assert_allclose(late(x), again(x, training=True), rtol=1e-5, atol=1e-5)
        for ours, theirs in zip(layer.variables, again.variables, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("channels", [3, 16])
def test_factor_and_shift_are_inference(channels):
    layer = _layer(channels)
    x = ft.normal([2, 4, 4, channels])
    factor, shift = layer.factor_and_shift()
    np.testing.assert_allclose(layer(x), x * factor + shift, rtol=1e-4, atol=1e-5)
