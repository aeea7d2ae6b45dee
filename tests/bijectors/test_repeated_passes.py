"""Eager calls that come again run a graph, and nobody sees a difference."""

import contextlib
import gc
import weakref
from unittest import mock

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr
from tfp_realnvp.bijectors.passes import surround_with

tfd = tfp.distributions

_SHAPE = (4, 4, 1)


@contextlib.contextmanager
def _eager():
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


def _vectors(**kwargs):
    return ft.randomize(tfr.RealNVPVector(5, num_couplings=2, num_filters=8, **kwargs))


def _smooth():
    """A flow of float64, which is accurate enough for second derivatives."""
    return _vectors(dtype=tf.float64, network_dtype="float64")


_CASES = {
    "images": (lambda: ft.image_flow(_SHAPE), [3, *_SHAPE], None),
    "one image": (lambda: ft.image_flow(_SHAPE), _SHAPE, None),
    "samples": (lambda: ft.image_flow(_SHAPE), [2, 3, *_SHAPE], None),
    "another size": (lambda: ft.image_flow(_SHAPE), [2, 8, 12, 1], None),
    "labels": (lambda: ft.image_flow(_SHAPE, num_classes=3), [4, 1, *_SHAPE], [2, 0, 1]),
    "dropout": (
        lambda: ft.image_flow(_SHAPE, num_classes=3, condition_dropout=0.1),
        [2, *_SHAPE],
        None,
    ),
    "recompute": (lambda: ft.image_flow(_SHAPE, recompute=True), [2, *_SHAPE], None),
    "vectors": (lambda: _vectors(), [3, 5], None),
    "one vector": (lambda: _vectors(num_classes=3), [5], 1),
    "float64": (_smooth, [2, 5], None),
}


@pytest.mark.parametrize("case", _CASES)
def test_results_of_graphs_are_equal(case):
    make, shape, condition = _CASES[case]
    flow = make()
    options = {} if condition is None else {"conditional_input": condition}
    make_values = ft.pixels if flow.event_ndims == 3 else ft.normal
    x = make_values(shape, flow.dtype)
    for call in (flow.inverse_and_log_det, flow.forward_and_log_det):
        first, _, third = (call(tf.identity(x), **options) for _ in range(3))
        # On other processors, an operation in a graph may round in another way.
        for actual, expected in zip(third, first, strict=True):
            assert actual.shape == expected.shape
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
        with mock.patch.object(type(flow), f"_{call.__name__}", side_effect=AssertionError):
            fourth = call(tf.identity(x), **options)
            np.testing.assert_array_equal(fourth[0], third[0])
            # Other numbers of events run the same graph.
            call(tf.stack([x, x]), **options)
            with pytest.raises(AssertionError), _eager():
                call(tf.identity(x), **options)


def _derivatives(flow, x):
    """Returns a gradient, products with the Hessian in x and in a variable, and a derivative."""
    kernel = max(flow.trainable_variables, key=lambda v: v.shape.num_elements())
    direction = ft.normal(x.shape, x.dtype, seed=7)
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            z, ildj = flow.inverse_and_log_det(x)
            loss = tf.reduce_sum(ildj) - tf.reduce_sum(z**4)
        gradient, by_kernel = inner.gradient(loss, [x, kernel])
        product = tf.reduce_sum(gradient * direction)
    with tf.autodiff.ForwardAccumulator(x, direction) as accumulator:
        z, ildj = flow.inverse_and_log_det(x)
    derivatives = [accumulator.jvp(z), accumulator.jvp(ildj)]
    return [gradient, by_kernel, *outer.gradient(product, [x, kernel]), *derivatives]


def test_first_and_second_derivatives():
    flow, x = _smooth(), ft.normal([2, 5], tf.float64)
    with _eager():
        expected = _derivatives(flow, x)
    for _ in range(3):
        actual = _derivatives(flow, x)
    assert all(float(tf.reduce_max(tf.abs(e))) > 1e-3 for e in expected)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-9, atol=1e-9)
    ft.assert_vectorizes(flow.inverse_and_log_det, x)


def _repeated(make=lambda: ft.image_flow(_SHAPE, network_fn=ft.shallow_conv)):
    """Returns a flow whose passes of one image run a graph, and an image."""
    flow, x = make(), ft.pixels([1, *_SHAPE])
    for _ in range(3):
        flow.inverse(tf.identity(x))
    return flow, x


def test_graphs_see_new_values_of_variables():
    flow, x = _repeated()
    before = flow.inverse(x)
    flow.trainable_variables[0].assign_add(tf.ones(flow.trainable_variables[0].shape))
    after = flow.inverse(x)
    assert float(tf.reduce_max(tf.abs(after - before))) > 1e-3
    with _eager():
        np.testing.assert_allclose(after, flow.inverse(tf.identity(x)), rtol=1e-5, atol=1e-5)


def test_a_scope_of_keras_replaces_variables():
    flow, x = _repeated()
    network = next(b for b in flow.submodules if isinstance(b, tfr.Coupling)).network
    variable = network.trainable_variables[0]
    before = flow.inverse(tf.identity(x))
    with keras.StatelessScope([(variable, variable.value + 1)]):
        within = flow.inverse(tf.identity(x))
    np.testing.assert_array_equal(flow.inverse(tf.identity(x)), before)
    variable.assign_add(np.ones(variable.shape))
    np.testing.assert_allclose(within, flow.inverse(tf.identity(x)), rtol=1e-5, atol=1e-5)
    assert float(tf.reduce_max(tf.abs(within - before))) > 1e-3


def test_code_of_the_user_runs_in_each_call():
    layers = []

    def network_fn(**kwargs):
        layers.append(ft.CountingLayer(ft.shallow_conv(**kwargs)))
        return layers[-1]

    flow, x = _repeated(lambda: ft.image_flow(_SHAPE, network_fn=network_fn))
    calls = [layer.count for layer in layers]
    flow.inverse(tf.identity(x))
    assert [layer.count for layer in layers] == [number + 1 for number in calls]


def test_bfloat16_is_rounded_in_one_way():
    options = {"network_dtype": "mixed_bfloat16"}
    flow, x = _repeated(lambda: ft.image_flow(_SHAPE, **options))
    with _eager():
        expected = flow.inverse(tf.identity(x))
    np.testing.assert_array_equal(flow.inverse(tf.identity(x)), expected)


def test_parts_are_observed_in_each_call():
    flow, x = _repeated()
    names = []
    with surround_with(observer=lambda part, *_: names.append(part.name)):
        flow.inverse(tf.identity(x))
    assert "pixel_logit" in names


def test_a_graph_ends_with_its_bijector():
    flow, x = _repeated()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(flow.inverse(tf.identity(x)))
    tape.gradient(loss, flow.trainable_variables)
    variable = flow.trainable_variables[0].ref().deref
    kept = weakref.ref(flow), weakref.ref(variable())
    del flow, tape, loss, variable
    gc.collect()
    assert [reference() for reference in kept] == [None, None]
