"""Gradients that compute activations again equal those of activations that are kept."""

import contextlib
import functools

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr
from tfp_realnvp.internal.recompute import recompute

pytestmark = pytest.mark.core


def _assert_close(actual, expected, tolerance):
    """Asserts that all tensors together differ by little, relative to their norm."""
    for one, other in zip(actual, expected, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
    actual, expected = (
        np.concatenate([np.ravel(tf.cast(each, tf.float64)) for each in tensors])
        for tensors in (actual, expected)
    )
    assert np.isfinite(expected).all() and np.abs(expected).max() > 0
    assert np.linalg.norm(actual - expected) <= tolerance * np.linalg.norm(expected)


def _assert_each_close(actual, expected, number, tolerance):
    """Asserts that the first tensors are close on their own, and the others together."""
    for one, other in zip(actual[:number], expected[:number], strict=True):
        _assert_close([one], [other], tolerance)
    _assert_close(actual[number:], expected[number:], tolerance)


# The function.

_X, _W = ft.normal([3, 2], tf.float64), ft.normal([2, 2], tf.float64, seed=1)


def _two_outputs(x, w):
    h = tf.sin(x @ w)
    return [tf.reduce_sum(h * tf.exp(h), axis=-1), h @ tf.transpose(w)], tf.shape(h)


def _recomputed(x, w):
    return recompute(_two_outputs, [x, w])


_LOSSES = {
    "both": lambda y, z: tf.reduce_sum(y) + tf.reduce_sum(z**2),
    # Also of a loss that uses only one of the outputs.
    "first": lambda y, z: tf.reduce_sum(y**2),
    "second": lambda y, z: tf.reduce_sum(z**3),
}


def _derivatives(function, loss, is_stopped=False):
    """Returns values, gradients and second derivatives."""
    with tf.GradientTape() as outer:
        outer.watch([_X, _W])
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([_X, _W])
            outputs, _ = function(_X, _W)
            value = _LOSSES[loss](*outputs)
            with tape.stop_recording() if is_stopped else contextlib.nullcontext():
                gradients = tape.gradient(value, [_X, _W])
        squared = tf.reduce_sum(gradients[0] ** 2) + tf.reduce_sum(tf.sin(gradients[1]))
    return [*outputs, *gradients, *outer.gradient(squared, [_X, _W])]


@pytest.mark.parametrize(
    ("loss", "mode"),
    [*((loss, "eager") for loss in _LOSSES), ("both", "function"), ("both", "xla")],
)
def test_first_and_second_derivatives(loss, mode):
    expected = _derivatives(_two_outputs, loss)
    _assert_close(ft.MODES[mode](lambda: _derivatives(_recomputed, loss))(), expected, 1e-12)
    # A tape outside of a function, and a gradient where recording is stopped.
    _assert_close(_derivatives(tf.function(_recomputed), loss), expected, 1e-12)
    _assert_close(_derivatives(_recomputed, loss, is_stopped=True), expected, 1e-12)


def test_an_input_without_effect_has_a_gradient_of_zeros():
    with tf.GradientTape() as tape:
        tape.watch([_X, _W])
        [y], _ = recompute(lambda x, w: ([x**2], None), [_X, _W])
    gradients = tape.gradient(y, [_X, _W])
    np.testing.assert_array_equal(gradients[1], tf.zeros_like(_W))


# Bijectors.

_SHAPE = (4, 4, 2)


def _chain(masks, networks, recompute, dtype):
    """Returns two couplings with a batch normalization between them."""
    first, second = (
        tfr.AffineCoupling(mask, network, dtype=dtype)
        for mask, network in zip(masks, networks, strict=True)
    )
    norm = tfr.BatchNormalization(num_channels=2, dtype=dtype)
    return tfr.FlowChain([first, norm, second], recompute=recompute, dtype=dtype)


_CHECKERBOARDS = tfr.CheckerboardMask(0), tfr.CheckerboardMask(1)
_BOTH_KINDS = tfr.CheckerboardMask(0), tfr.ChannelMask(1)


def _image(recompute, dtype, num_scales=2, **kwargs):
    options = {"num_couplings": 1, "num_blocks": 0, "num_filters": 3, "dtype": dtype, **kwargs}
    return tfr.RealNVPImage(_SHAPE, num_scales, recompute=recompute, **options)


def _resnets(recompute, dtype):
    networks = [
        ft.network(channels_in, 2 * channels_in, dtype.name, checkerboard_parity=parity)
        for channels_in, parity in ((2, 0), (1, None))
    ]
    return _chain(_BOTH_KINDS, networks, recompute, dtype)


def _conditioned(recompute, dtype):
    networks = [ft.ConditionedNetwork(4, dtype=dtype.name) for _ in range(2)]
    for network in networks:
        network.build((None, None, None, 2))
    return _chain(_CHECKERBOARDS, networks, recompute, dtype)


def _user_network(dtype):
    first, last = (keras.layers.Conv2D(n, 3, padding="same", dtype=dtype.name) for n in (5, 4))
    norm = keras.layers.BatchNormalization(momentum=0.8, dtype=dtype.name)
    dropout = keras.layers.Dropout(0.4, seed=7, dtype=dtype.name)
    layers = [first, norm, dropout, keras.layers.Activation("tanh", dtype=dtype.name), last]
    return keras.Sequential([keras.Input([None, None, 2], dtype=dtype.name), *layers])


def _user_networks(recompute, dtype):
    # Only Keras layers are computed again. One of them is frozen.
    kernel = ft.normal([3, 3, 2, 4], dtype)
    networks = [lambda x: tf.nn.conv2d(tf.sin(x), kernel, 1, "SAME"), _user_network(dtype)]
    networks[1].layers[-1].trainable = False
    return _chain(_CHECKERBOARDS, networks, recompute, dtype)


_MIXTURE = {"num_scales": 1, "transformer": "logistic_mixture"}
_BFLOAT16 = functools.partial(_image, num_scales=1, network_dtype="mixed_bfloat16")
_CASES = {
    "image": (functools.partial(_image, num_scales=1), tf.float64),
    "image_bfloat16": (_BFLOAT16, tf.float32),
    "resnets": (_resnets, tf.float64),
    "image_attention": (functools.partial(_image, attention=2), tf.float64),
    "image_mixture": (functools.partial(_image, **_MIXTURE), tf.float64),
    "conditioned": (_conditioned, tf.float64),
    "user_networks": (_user_networks, tf.float64),
}


def _sources(name):
    """Returns data, and the condition if there is one."""
    dtype = _CASES[name][1]
    make = ft.pixels if name.startswith("image") else ft.normal
    conditions = [ft.normal([3, 2], dtype, seed=1)] if name == "conditioned" else []
    return [make([3, *_SHAPE], dtype), *conditions]


def _bijector(name, recompute):
    keras.utils.set_random_seed(0)
    make, dtype = _CASES[name]
    return ft.randomize(make(recompute, dtype))


def _options(condition, training):
    return {"training": training, **({"conditional_input": condition[0]} if condition else {})}


@functools.cache
def _step(name, recompute, mode):
    """Returns what one training pass gives, its gradients, and all variables after it."""
    bijector = _bijector(name, recompute)
    dtype = _CASES[name][1]
    flow = tfd.TransformedDistribution(ft.standard_normal(_SHAPE, dtype), bijector)

    @ft.MODES[mode]
    def log_prob_and_gradients(y, *condition):
        with tf.GradientTape() as tape:
            tape.watch([y, *condition])
            log_prob = flow.log_prob(y, bijector_kwargs=_options(condition, training=True))
        return log_prob, tape.gradient(log_prob, [y, *condition, *flow.trainable_variables])

    log_prob, gradients = log_prob_and_gradients(*_sources(name))
    return log_prob, gradients, [variable.numpy() for variable in flow.variables]


def _tolerance(name):
    return 1e-10 if _CASES[name][1] == tf.float64 else 1e-4


# Those of which a part is in no other case, and tracing and compiling take most of the time.
_TRACED = {"eager": _CASES.keys() - {"image_mixture"}, "function": ("conditioned",)}


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param(name, mode, marks=[pytest.mark.full] * (name not in _TRACED.get(mode, ())))
        for name in _CASES
        for mode in ft.MODES
        # XLA compiles the graphs of functions.
        if mode != "function" or name not in ("image", "resnets", "image_mixture")
    ],
)
def test_a_training_pass(name, mode):
    log_prob, gradients, variables = _step(name, True, mode)
    # XLA draws other dropout masks, and rounds to bfloat16 at other places.
    mode = mode if name in ("user_networks", "image_bfloat16") else "eager"
    expected_log_prob, expected_gradients, expected_variables = _step(name, False, mode)
    tolerance = _tolerance(name)
    _assert_close([log_prob], [expected_log_prob], tolerance)
    # The input and the condition on their own: the variables could hide them.
    number = len(_sources(name))
    _assert_each_close(gradients, expected_gradients, number, tolerance)
    # The statistics are moved once, and the seeds of dropout as well.
    ft.assert_close(variables, expected_variables, rtol=tolerance, atol=tolerance)


def test_inference_and_the_other_direction():
    results = []
    for recompute_ in (True, False):
        bijector, [x] = _bijector("resnets", recompute_), _sources("resnets")
        with tf.GradientTape() as tape:
            tape.watch(x)
            y, fldj = bijector.forward_and_log_det(x)
            loss = tf.reduce_sum(tf.sin(y)) + tf.reduce_sum(fldj**2)
        results.append([y, fldj, *tape.gradient(loss, [x, *bijector.trainable_variables])])
    _assert_close(*results, 1e-10)


def _second_derivatives_of(name, recompute, training):
    bijector, sources = _bijector(name, recompute), _sources(name)
    variables = bijector.trainable_variables
    with tf.GradientTape() as outer:
        outer.watch(sources)
        with tf.GradientTape() as tape:
            tape.watch(sources)
            y, *condition = sources
            z, ildj = bijector.inverse_and_log_det(y, **_options(condition, training))
            loss = tf.reduce_sum(z**3) + tf.reduce_sum(ildj**2)
        gradients = tape.gradient(loss, [*sources, *variables])
        squared = tf.add_n([tf.reduce_sum(gradient**2) for gradient in gradients])
    return outer.gradient(squared, [*sources, *variables])


@pytest.mark.parametrize(("name", "training"), [("resnets", False), ("conditioned", True)])
def test_second_derivatives(name, training):
    actual, expected = (
        _second_derivatives_of(name, recompute, training) for recompute in (True, False)
    )
    number = len(_sources(name))
    _assert_each_close(actual, expected, number, 1e-10)


@pytest.mark.parametrize("recompute", [False, True])
def test_only_the_chain_that_says_so_recomputes(recompute):
    # The inner chain inherits it from the outer one; a chain beside it does not.
    counting = ft.CountingLayer(ft.network(1, 2, checkerboard_parity=0))
    chain = tfr.FlowChain([tfr.AffineCoupling(tfr.CheckerboardMask(), counting)])
    outer = tfr.FlowChain([chain], recompute=recompute)

    def gradient(bijector):
        counting.count = 0
        with tf.GradientTape() as tape:
            tape.watch(x)
            log_det = bijector.inverse_and_log_det(x)[1]
        return tape.gradient(log_det, x)

    x = ft.normal([2, 4, 4, 1])
    function = tf.function(lambda: gradient(outer))
    function()
    assert counting.count == 1 + recompute
    tf.function(lambda: gradient(chain))()
    assert counting.count == 1


def _jacobian_product(flow, x, tangent):
    with tf.autodiff.ForwardAccumulator(x, tangent) as forward:
        log_prob = flow.log_prob(x)
    return forward.jvp(log_prob)


def _hessian_product(flow, x, tangent):
    with tf.autodiff.ForwardAccumulator(x, tangent) as forward:
        scores = tfp.math.value_and_gradient(flow.log_prob, x)[1]
    return forward.jvp(scores)


@pytest.mark.graph
@pytest.mark.parametrize("wrap", [lambda function: function, tf.function], ids=["eager", "graph"])
@pytest.mark.parametrize("product", [_jacobian_product, _hessian_product])
def test_forward_mode(product, wrap):
    flow = ft.vector_distribution(2, num_filters=4, weights_seed=1)
    recomputed = flow.copy(bijector=flow.bijector.copy(recompute=True))
    x, tangent = ft.normal([3, 2]), ft.normal([3, 2], seed=1)
    expected = product(flow, x, tangent)
    assert np.abs(expected).max() > 1e-2
    actual = wrap(lambda x, tangent: product(recomputed, x, tangent))(x, tangent)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
