"""One evaluation of each network gives the value and its log det."""

import functools
import gc
import weakref

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr
from tfp_realnvp.distributions import ConditionedDistribution

pytestmark = pytest.mark.quick


_SHAPE = (4, 4, 2)


def _image(network_fn):
    return tfr.RealNVPImage(_SHAPE, num_scales=2, num_couplings=1, network_fn=network_fn)


def _coupling(network_fn, parity=0):
    network = network_fn(input_channels=2, output_channels=4)
    return tfr.AffineCoupling(tfr.CheckerboardMask(parity), network)


def _invert(network_fn):
    return tfb.Invert(_coupling(network_fn))


def _chain(network_fn):
    one, two = _coupling(network_fn), _coupling(network_fn, parity=1)
    return tfb.Chain([tfb.Softplus(), one, tfb.Scale(2.0), tfb.Invert(two)])


def _flow_chain(network_fn):
    return tfr.FlowChain([_coupling(network_fn), tfb.Invert(_coupling(network_fn, parity=1))])


def _image_given_label(network_fn):
    return ft.conditional_flow("labels", image_shape=_SHAPE, network_fn=network_fn)


_SETUPS = [_image, _coupling, _invert, _chain, _flow_chain, _image_given_label]


@functools.cache
def _made(setup):
    """Returns a bijector, which the tests share, and its networks, which count their calls."""
    network_fn, layers = ft.counting(ft.resnet if setup is _image_given_label else ft.convolution)
    return ft.randomize(setup(network_fn)), layers


def _assert_one_pass(layers, call, mode, *arguments):
    """Checks that each layer is evaluated once, eagerly or in the graph of a function."""
    # Tracing runs the Python code once: the counts are of evaluations in the graph.
    traced = tf.function(call, autograph=False).get_concrete_function
    assert ft.counts(layers, call if mode == "eager" else traced, *arguments) == {1}


def _sample_and_log_prob(flow, data):
    return flow.experimental_sample_and_log_prob(2, seed=(0, 1))


def _log_prob_of_sample(flow, data):
    return flow.log_prob(flow.sample(2, seed=(0, 1)))


def _gradient(flow, data, **options):
    with tf.GradientTape() as tape:
        loss = -tf.reduce_mean(flow.log_prob(data, **options))
    gradients = tape.gradient(loss, flow.trainable_variables)
    assert all(gradient is not None for gradient in gradients)


def _training_gradient(flow, data):
    options = {"training": True}
    if not isinstance(flow, ConditionedDistribution):
        is_ours = isinstance(flow.bijector, tfr.FlowBijector)
        options = {"bijector_kwargs": options if is_ours else {}}
    _gradient(flow, data, **options)


def _name(function):
    return function.__name__.removeprefix("_")


@pytest.mark.parametrize(
    "call", [_sample_and_log_prob, _log_prob_of_sample, _gradient, _training_gradient], ids=_name
)
@pytest.mark.parametrize(
    ("setup", "mode"),
    [
        *((setup, "eager") for setup in _SETUPS),
        *((setup, "function") for setup in (_image, _chain, _image_given_label)),
    ],
    ids=lambda value: value if isinstance(value, str) else _name(value),
)
def test_each_network_is_evaluated_once(setup, call, mode):
    bijector, layers = _made(setup)
    flow = tfd.TransformedDistribution(ft.standard_normal(_SHAPE), bijector)
    if setup is _image_given_label:
        flow = tfr.condition(flow, [3, 1, 4])
    data = ft.pixels([3, *_SHAPE])
    _assert_one_pass(layers, lambda data: call(flow, data), mode, data)


@pytest.mark.parametrize("mode", ["eager", "function"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("setup", [_image, _coupling, _flow_chain], ids=_name)
def test_the_public_pair_is_one_pass(setup, direction, training, mode):
    bijector, layers = _made(setup)
    call = functools.partial(getattr(bijector, f"{direction}_and_log_det"), training=training)
    _assert_one_pass(layers, call, mode, ft.pixels([3, *_SHAPE]))


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_each_call_of_the_public_pair_is_a_pass(direction):
    bijector, layers = _made(_coupling)
    value, results = ft.normal([3, *_SHAPE]), []
    method = getattr(bijector, f"{direction}_and_log_det")
    assert ft.counts(layers, lambda: results.extend([method(value), method(value)])) == {2}
    first, second = results
    ft.assert_equal(first, second)
    # The four hooks give the same.
    np.testing.assert_array_equal(getattr(bijector, direction)(value), first[0])
    log_det = getattr(bijector, f"{direction}_log_det_jacobian")(value, event_ndims=3)
    np.testing.assert_array_equal(log_det, first[1])


def test_log_det_first_then_value():
    # In a graph, which keeps all its tensors. Eagerly TFP's cache holds on to no value that the
    # caller does not hold: nobody holds the value of a pass that was made for its log det.
    bijector, layers = _made(_image)

    def call(value):
        log_det = bijector.inverse_log_det_jacobian(value, event_ndims=3)
        return bijector.inverse(value), log_det

    _assert_one_pass(layers, call, "function", ft.pixels([3, *_SHAPE]))


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_a_graph_that_nobody_needs_is_gone(direction):
    # TensorFlow itself keeps each graph in which there is a `tf.custom_gradient`.
    flow, graphs = ft.randomize(_coupling(ft.convolution)), []

    @tf.function
    def both(x):
        graphs.append(weakref.ref(tf.compat.v1.get_default_graph()))
        log_det = getattr(flow, f"{direction}_log_det_jacobian")(x)
        return getattr(flow, direction)(x), log_det

    both(ft.pixels([2, *_SHAPE]))
    assert graphs[-1]() is not None
    del both
    gc.collect()
    assert [graph() for graph in graphs] == [None] * len(graphs)


def test_independent_and_nested_distributions():
    bijector, layers = _made(_image)
    inner = tfd.TransformedDistribution(ft.standard_normal(_SHAPE), bijector)
    outer = tfd.TransformedDistribution(tfd.Independent(inner), tfb.Scale(2.0))
    _assert_one_pass(layers, outer.log_prob, "eager", 2 * ft.pixels([3, *_SHAPE]))
