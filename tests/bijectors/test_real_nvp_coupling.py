"""`real_nvp_coupling` beside `tfb.RealNVP`, with functions as TFP's users write them."""

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr

pytestmark = pytest.mark.core

tfb, tfd = tfp.bijectors, tfp.distributions

_SIZE = 5


@keras.saving.register_keras_serializable(package="tests")
class Conditioner(keras.layers.Layer):
    """From kept elements, and a condition, to shift and log scale."""

    def __init__(self, output_units, **kwargs):
        super().__init__(**kwargs)
        self.output_units = output_units
        self.hidden = keras.layers.Dense(4, "tanh", dtype=self.dtype_policy)
        self.of_condition = keras.layers.Dense(4, dtype=self.dtype_policy)
        self.last = keras.layers.Dense(2 * output_units, dtype=self.dtype_policy)

    def build(self, input_shape):
        self.hidden.build(input_shape)
        self.of_condition.build((None, 3))
        self.last.build((None, 4))

    def call(self, x, conditional_input=None):
        hidden = self.hidden(x)
        if conditional_input is not None:
            hidden += self.of_condition(conditional_input)
        return tf.split(self.last(hidden), 2, axis=-1)

    def get_config(self):
        return {**super().get_config(), "output_units": self.output_units}


def _pair(network, dtype=tf.float32, **masks):
    """Returns TFP's bijector and ours, with one function."""

    def function(x, output_units, conditional_input=None):
        assert x.shape[-1] + output_units == _SIZE
        return network(x, conditional_input=conditional_input)

    options = {**(masks or {"num_masked": 2}), "shift_and_log_scale_fn": function}
    ours = tfr.real_nvp_coupling(**options, dtype=dtype)
    return tfb.RealNVP(**options), ours


def _distribution(bijector, dtype=tf.float32):
    return tfd.TransformedDistribution(ft.standard_normal([_SIZE], dtype), bijector)


_FRACTIONS = [(0.25, 4), (-0.5, 3)]


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
@pytest.mark.parametrize(
    ("name", "value", "num_changed"),
    [*(("num_masked", n, 3) for n in (2, -2)), *(("fraction_masked", *f) for f in _FRACTIONS)],
)
def test_densities_and_samples_are_those_of_tfp(name, value, num_changed, dtype):
    masks = {name: value}
    network = Conditioner(num_changed, dtype=dtype.name)
    tfp_flow, flow = (_distribution(b, dtype) for b in _pair(network, dtype, **masks))
    x = ft.normal([4, _SIZE], dtype)
    flow.log_prob(x)
    ft.randomize(network)
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if dtype == tf.float32 else {"rtol": 1e-12}
    for given in ({}, {"bijector_kwargs": {"conditional_input": ft.normal([4, 3], dtype)}}):
        expected = tfp_flow.log_prob(x, **given)
        assert np.abs(expected - flow.distribution.log_prob(x)).max() > 0.1
        np.testing.assert_allclose(flow.log_prob(x, **given), expected, **tolerance)
        samples, tfp_samples = (d.sample(4, seed=(0, 1), **given) for d in (flow, tfp_flow))
        np.testing.assert_allclose(samples, tfp_samples, **tolerance)
        log_prob = flow.log_prob(tf.identity(samples), **given)
        np.testing.assert_allclose(log_prob, tfp_flow.log_prob(samples, **given), **tolerance)


@pytest.mark.parametrize("mode", ["eager", "function"])
def test_half_of_the_calls_of_tfp(mode):
    network, x = ft.CountingLayer(Conditioner(3)), ft.normal([2, _SIZE])
    for flow, number in zip(map(_distribution, _pair(network)), (2, 1), strict=True):
        log_prob = tf.function(flow.log_prob) if mode == "function" else flow.log_prob
        flow.log_prob(ft.normal([2, _SIZE], seed=1))
        assert ft.counts([network], log_prob, x) == {number}


class Module(tf.Module):
    def __init__(self):
        super().__init__()
        self.kernel = tf.Variable(ft.normal([2, 6]))

    def __call__(self, x, output_units):
        return tf.split(x @ self.kernel, 2, axis=-1)


def _shift_only():
    network = keras.layers.Dense(3)
    return lambda x, output_units: (network(x), None)


FUNCTIONS = {
    "template": (lambda: tfb.real_nvp_default_template([4]), 4),
    "python function": (_shift_only, 2),
    "tf.Module": (Module, 1),
    "keras.Layer": (lambda: Conditioner(3), 6),
}


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_gradients_reach_the_variables_of_the_function(kind):
    make, num_variables = FUNCTIONS[kind]
    coupling = tfr.real_nvp_coupling(num_masked=2, shift_and_log_scale_fn=make())
    flow, x = _distribution(coupling), ft.normal([7, _SIZE])
    model = tfr.FlowModel(flow)
    variables = flow.trainable_variables
    assert len(variables) == len(model.trainable_variables) == num_variables
    ft.randomize(flow)
    with tf.GradientTape() as tape:
        before = flow.log_prob(x)
        loss = -tf.reduce_mean(before)
    if kind != "keras.Layer":  # which has variables for a condition
        assert all(g is not None for g in tape.gradient(loss, variables))
    model.compile(keras.optimizers.SGD(0.01))
    model.fit(x, batch_size=7, epochs=2, verbose=0)
    # The cache knows the variables too.
    assert -tf.reduce_mean(flow.log_prob(x)) < loss
    np.testing.assert_allclose(flow.log_prob(x), flow.log_prob(tf.identity(x)), rtol=1e-6)


def test_a_declared_condition_broadcasts_and_is_saved(tmp_path):
    options = {"fraction_masked": -0.4, "conditional_event_shape": [3]}
    coupling = tfr.real_nvp_coupling(**options, shift_and_log_scale_fn=Conditioner(3))
    model = tfr.FlowModel(_distribution(coupling))
    ft.randomize(model.distribution)
    given = ft.normal([3])
    x = tfr.condition(model.distribution, given).sample([2, 4])
    log_prob = tfr.condition(model.distribution, tf.fill([4, 3], 1.0) * given).log_prob(x)
    assert log_prob.shape == (2, 4)
    with pytest.raises(ValueError, match="expected a conditional_input of vectors"):
        model.distribution.log_prob(x)
    loaded = ft.reloaded("load_model", model, tmp_path).distribution
    actual = loaded.log_prob(x[0, 0], bijector_kwargs={"conditional_input": given})
    np.testing.assert_allclose(actual, log_prob[0, 0])


def test_a_bijector_fn():
    def bijector_fn(x, output_units):
        slopes = tf.nn.softplus(tf.stack([x[..., :1] + i for i in range(3)], axis=-1))
        widths = 2 * tf.nn.softmax(tf.tile(tf.stack([x, -x, x, x], -1), [1, 1, 1]))
        return tfb.RationalQuadraticSpline(widths, widths[..., ::-1], slopes, range_min=-1)

    options = {"num_masked": 2, "bijector_fn": bijector_fn}
    tfp_bijector, bijector = tfb.RealNVP(**options), tfr.real_nvp_coupling(**options)
    x = ft.normal([6, 4]) / 2
    np.testing.assert_allclose(bijector.forward(x), tfp_bijector.forward(x), rtol=1e-5)
    y, fldj = bijector.forward_and_log_det(tf.identity(x))
    expected = tfp_bijector.forward_log_det_jacobian(x, event_ndims=1)
    np.testing.assert_allclose(fldj, expected, rtol=1e-5)
    np.testing.assert_allclose(bijector.inverse(tf.identity(y)), x, rtol=1e-4, atol=1e-5)


_SAME = lambda x, n: x  # noqa: E731


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, r"expected one of num_masked and fraction_masked, and one \*_fn"),
        ({"num_masked": 1, "fraction_masked": 0.5}, ValueError, "expected one of num_masked"),
        ({"num_masked": 1, "bijector_fn": len}, ValueError, r"and one \*_fn"),
        ({"num_masked": 0}, ValueError, r"expected \|num_masked\| of at least 1"),
        ({"fraction_masked": 1.0}, ValueError, r"or \|fraction_masked\| below 1"),
        ({"num_masked": 1.5}, ValueError, "expected num_first, a whole number"),
        ({"num_masked": 5}, ValueError, "expected a channel to transform, got 5"),
        ({"num_masked": -6}, ValueError, "expected a channel to transform, got 5"),
        ({"num_masked": 1, "shift_and_log_scale_fn": 3}, TypeError, "3 is not a callable"),
        ({"num_masked": 1, "shift_and_log_scale_fn": _SAME}, ValueError, r"\(shift, log_scale\)"),
    ],
)
def test_errors(options, error, message):
    options = {"shift_and_log_scale_fn": lambda x, n: (None, None), **options}
    with pytest.raises(error, match=message):
        tfr.real_nvp_coupling(**options).forward(ft.normal([2, _SIZE]))
