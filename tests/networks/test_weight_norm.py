import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_realnvp as tfr
from tfp_realnvp.networks.weight_norm import convolve, fixed_kernels


def _layer(filters=5, kernel_size=3, channels=2, **kwargs):
    layer = tfr.WeightNormConv2D(filters, kernel_size, **kwargs)
    layer.build((None, None, None, channels))
    return ft.randomize(layer)


def test_the_norm_of_each_filter_is_its_scale():
    layer = _layer()
    norms = np.sqrt((layer.normalized_kernel().numpy() ** 2).sum((0, 1, 2)))
    np.testing.assert_allclose(norms, np.abs(layer.scale.numpy()), rtol=1e-6)


@pytest.mark.parametrize("initial_scale", [1.0, 0.1])
def test_the_scale_starts_as_asked(initial_scale):
    layer = tfr.WeightNormConv2D(4, 3, initial_scale=initial_scale)
    layer.build((None, None, None, 3))
    norms = np.sqrt((layer.normalized_kernel().numpy() ** 2).sum((0, 1, 2)))
    np.testing.assert_allclose(norms, initial_scale, rtol=1e-6)


def test_only_the_direction_of_the_kernel_counts():
    layer = _layer()
    x = ft.normal([2, 4, 4, 2])
    before = layer(x)
    layer.kernel.assign(7 * layer.kernel)
    np.testing.assert_allclose(layer(x), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("use_bias", [True, False])
def test_against_a_plain_convolution(kernel_size, use_bias):
    layer = _layer(kernel_size=kernel_size, use_bias=use_bias)
    x = ft.normal([2, 4, 3, 2])
    kernel, scale = layer.kernel.numpy(), layer.scale.numpy()
    kernel = scale * kernel / np.sqrt((kernel**2).sum((0, 1, 2)))
    expected = tf.nn.conv2d(x, kernel, 1, "SAME") + (layer.bias.numpy() if use_bias else 0)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-5)
    assert len(layer.trainable_variables) == 2 + use_bias


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("is_fixed", [True, False])
def test_kernel_and_bias_scale_and_shift_the_output(use_bias, is_fixed):
    layer = _layer(use_bias=use_bias)
    x, factor, shift = ft.normal([2, 4, 3, 2]), ft.normal([5], seed=1), ft.normal([5], seed=2)
    expected = layer(x) * factor
    with fixed_kernels({layer: tf.Variable(layer.normalized_kernel())} if is_fixed else {}):
        scaled = convolve(x, *layer.kernel_and_bias(factor))
        shifted = convolve(x, *layer.kernel_and_bias(factor, shift))
    np.testing.assert_allclose(scaled, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shifted, expected + shift, rtol=1e-4, atol=1e-5)


def test_unit_input_gives_unit_output():
    layer = tfr.WeightNormConv2D(64, 3)
    y = layer(ft.normal([8, 16, 16, 32]))[:, 1:-1, 1:-1]
    assert float(tf.reduce_mean(y**2)) == pytest.approx(1, rel=0.1)


def test_a_filter_of_zeros_is_no_nan():
    layer = _layer()
    layer.kernel.assign(tf.zeros_like(layer.kernel.value))
    with tf.GradientTape() as tape:
        y = layer(ft.normal([1, 4, 4, 2]))
    gradients = tape.gradient(y, [v.value for v in layer.trainable_variables])
    assert np.isfinite(y).all() and all(np.isfinite(gradient).all() for gradient in gradients)


def test_the_gradient_of_the_kernel_is_orthogonal_to_it():
    # Weight normalisation, section 2.2: the length of the kernel is not learned.
    layer = _layer()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(ft.normal([2, 4, 4, 2])) ** 2)
    gradient = tape.gradient(loss, layer.kernel.value).numpy()
    along = (gradient * layer.kernel.numpy()).sum((0, 1, 2))
    size = np.sqrt((gradient**2).sum((0, 1, 2)) * (layer.kernel.numpy() ** 2).sum((0, 1, 2)))
    np.testing.assert_allclose(along / size, 0, atol=1e-5)


def test_config_round_trip():
    layer = _layer(use_bias=False, initial_scale=0.5, name="conv", dtype="float64")
    again = tfr.WeightNormConv2D.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    again.build((None, None, None, 2))
    again.set_weights(layer.get_weights())
    x = ft.normal([1, 4, 4, 2], tf.float64)
    np.testing.assert_array_equal(again(x), layer(x))


def test_serialisation():
    layer = _layer()
    config = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is tfr.WeightNormConv2D and again.get_config() == layer.get_config()
    # A layer that was built comes back built.
    again.set_weights(layer.get_weights())
    x = ft.normal([1, 4, 4, 2])
    np.testing.assert_array_equal(again(x), layer(x))


def test_mixed_precision():
    layer, single = _layer(dtype="mixed_bfloat16"), _layer()
    assert {str(variable.dtype) for variable in layer.variables} == {"float32"}
    x = ft.normal([2, 4, 4, 2])
    assert layer(x).dtype == tf.bfloat16
    single.set_weights(layer.get_weights())
    np.testing.assert_allclose(tf.cast(layer(x), tf.float32), single(x), rtol=0.05, atol=0.05)


def test_shapes():
    layer = _layer()
    assert layer.compute_output_shape((None, 8, 6, 2)) == (None, 8, 6, 5)
    for shape in ((1, 4, 4, 2), (3, 4, 4, 2), (2, 7, 5, 2)):
        assert layer(ft.normal(shape)).shape == (*shape[:-1], 5)
    late = tf.function(layer, input_signature=[tf.TensorSpec([None, None, None, 2], tf.float32)])
    x = ft.normal([2, 6, 3, 2])
    np.testing.assert_allclose(late(x), layer(x), rtol=1e-5, atol=1e-6)
