"""Learned noise, on a distribution whose answer is known."""

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr
from tfp_realnvp import evaluation
from tfp_realnvp.saving import keras_config

_SHAPE = (4, 4, 1)
_LOC, _SCALE = 7.3, 0.6


def _images(number):
    values = np.random.default_rng(0).logistic(_LOC, _SCALE, [number, *_SHAPE])
    return np.clip(np.floor(values), 0, 15).astype(np.uint8)


def _density():
    return tfd.Independent(tfd.Logistic(tf.fill(_SHAPE, _LOC), tf.fill(_SHAPE, _SCALE)), 3)


def _exact_bits(images):
    """Bits/dim of the integers: differences of the distribution function."""
    low = (images.astype(np.float64) - _LOC) / _SCALE
    probabilities = 1 / (1 + np.exp(-low - 1 / _SCALE)) - 1 / (1 + np.exp(-low))
    return -np.log2(probabilities).mean()


def _dequantizer(**kwargs):
    options = {"num_values": 16, "num_filters": 16, "num_couplings": 2, **kwargs}
    return tfr.VariationalDequantization(_SHAPE, **options)


def _move(dequantizer):
    # With weights that are large as those of `ft.randomize` all noise rounds to 0 or 1.
    rng = np.random.default_rng(0)
    for variable in dequantizer.trainable_variables:
        variable.assign_add(0.05 * rng.normal(size=variable.shape))


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    model = ft.compiled(_density(), keras.optimizers.Adam(5e-3), dequantizer=_dequantizer())
    images = _images(2048)
    start = model.evaluate(images, verbose=0)
    model.fit(images, batch_size=64, epochs=8, verbose=0)
    return model, images, start


def test_starts_as_uniform_noise(trained):
    _, images, start = trained
    uniform = ft.compiled(_density())
    np.testing.assert_allclose(start, uniform.evaluate(images, verbose=0), rtol=1e-5)


def test_bounds(trained):
    model, images, _ = trained
    images = images[:512]
    options = {"num_samples": 32, "batch_size": 256}
    uniform, learned = (
        evaluation.bits_per_dim(model.distribution, images, dequantizer=each, **options)
        for each in (None, model.dequantizer)
    )
    exact = _exact_bits(images)
    assert learned.mean < uniform.mean - 0.02
    # An upper bound up to the randomness of the noise.
    assert exact - 1e-3 < learned.importance_weighted <= learned.mean
    assert abs(learned.importance_weighted - uniform.importance_weighted) < 0.01
    assert abs(learned.importance_weighted - exact) < 0.01


def test_density_of_the_noise():
    dequantizer = _dequantizer(dtype=tf.float64)
    _move(dequantizer)
    images = tf.constant(_images(2))
    values, log_q = dequantizer.dequantize(images, (1, 2))
    normal = tfd.Normal(np.float64(0), 1)
    for image, u, actual in zip(images, values % 1, log_q, strict=True):
        condition = tf.cast(image, tf.float64) / 7.5 - 1

        def noise_of(u, condition=condition):
            latents = normal.quantile(u)
            return dequantizer.bijector.inverse(latents, conditional_input=condition)

        # q is the normal density of the noise times |det dnoise / du|.
        log_normal = tf.reduce_sum(normal.log_prob(noise_of(u)))
        expected = log_normal + ft.jacobian_log_det(noise_of, u)
        assert abs(expected) > 0.1
        np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_noise_is_in_the_unit_interval_and_reproducible():
    dequantizer = _dequantizer()
    _move(dequantizer)
    images = tf.constant(_images(8))
    values, log_q = dequantizer.dequantize(images, (1, 2))
    np.testing.assert_array_equal(tf.floor(values), tf.cast(images, tf.float32))
    again, _ = dequantizer.dequantize(images, (1, 2))
    np.testing.assert_array_equal(values, again)
    other, _ = dequantizer.dequantize(images, (1, 3))
    assert np.abs(values - other).max() > 0.1
    # A part of a batch gets the same noise as within the batch.
    part, log_q_part = dequantizer.dequantize(images[3:], (1, 2), first=tf.constant(3))
    np.testing.assert_allclose(part, values[3:], rtol=1e-6)
    np.testing.assert_allclose(log_q_part, log_q[3:], rtol=1e-4, atol=1e-4)


def test_configuration():
    dequantizer = _dequantizer(num_couplings=1, network_dtype="mixed_bfloat16", recompute=True)
    config = keras_config.serialize(dequantizer, "dequantizer")
    other = keras_config.deserialize(config, tfr.VariationalDequantization)
    assert other.num_values == 16 and other.bijector.recompute
    networks = [part.network for part in other.submodules if isinstance(part, tfr.Coupling)]
    assert {network.dtype_policy.name for network in networks} == {"mixed_bfloat16"}
    shapes = [variable.shape for variable in other.variables]
    assert shapes == [variable.shape for variable in dequantizer.variables]


def test_another_bijector():
    layer = tfr.coupling_layer(ft.shallow_conv, 4, mixing="lu")
    bijector = tfr.multi_scale(_SHAPE, 2, layer, conditional_event_shape=_SHAPE)
    dequantizer = tfr.VariationalDequantization(_SHAPE, num_values=16, bijector=bijector)
    _move(dequantizer)
    copy = tfr.VariationalDequantization(**dequantizer.get_config())
    assert copy.variables == dequantizer.variables
    values, _ = dequantizer.dequantize(_images(4), (1, 2))
    np.testing.assert_array_equal(tf.floor(values), _images(4))


def test_another_number_of_gray_levels():
    flow = ft.flow_distribution(_SHAPE, num_scales=1, num_couplings=1, num_values=17)
    images = _images(2)
    for use in (tfr.FlowModel, lambda *args, **kw: evaluation.bits_per_dim(*args, images, **kw)):
        with pytest.raises(ValueError, match=r"dequantizer of num_values=17.*got 16"):
            use(flow, dequantizer=_dequantizer())
    tfr.FlowModel(flow, dequantizer=_dequantizer(num_values=17))


@pytest.mark.full
def test_trains_with_a_flow_under_xla():
    distribution = ft.flow_distribution(_SHAPE, num_scales=1, num_couplings=1, num_values=16)
    dequantizer = _dequantizer()
    model = ft.compiled(distribution, dequantizer=dequantizer, jit_compile=True)
    variables = [*distribution.trainable_variables, *dequantizer.trainable_variables]
    assert len(model.trainable_variables) == len(variables)
    before = ft.values(variables)
    model.fit(_images(64), batch_size=32, epochs=2, verbose=0)
    assert all(np.abs(v - old).max() > 0 for v, old in zip(variables, before, strict=True))
