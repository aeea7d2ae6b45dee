"""A batch without events gives results without events, as with every `tfd.Distribution`.

With oneDNN, TensorFlow's convolution of an empty batch has a wrong number of channels, and a matrix
product without rows ends the process.
"""

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr

_IMAGE = (4, 4, 2)
_SIZES = {"num_scales": 1, "num_couplings": 1, "num_blocks": 0, "num_filters": 4}
_VECTOR = {"num_couplings": 2, "num_filters": 8}
_LABELS, _VECTORS = np.array([2, 1], np.int32), np.array([[0.3, 1.0], [2.0, -1.0]], np.float32)


def _shallow_network():
    return tfr.ShallowConv(2, num_filters=4, conditional_event_shape=[2])


# Flows and their conditions.
_FLOWS = {
    "image": (lambda: tfr.RealNVPImage(_IMAGE, **{**_SIZES, "num_scales": 2}), None),
    "image_labels": (lambda: tfr.RealNVPImage(_IMAGE, **_SIZES, num_classes=3), _LABELS),
    "image_images": (
        lambda: tfr.RealNVPImage(_IMAGE, **_SIZES, conditional_event_shape=[4, 4, 1]),
        np.ones([2, 4, 4, 1], np.float32),
    ),
    "image_checked": (lambda: tfr.RealNVPImage(_IMAGE, **_SIZES, validate_args=True), None),
    "vector": (lambda: tfr.RealNVPVector(3, **_VECTOR), None),
    "vector_labels": (lambda: tfr.RealNVPVector(3, **_VECTOR, num_classes=3), _LABELS),
    "vector_vectors": (
        lambda: tfr.RealNVPVector(3, **_VECTOR, conditional_event_shape=[2]),
        _VECTORS,
    ),
    "coupling": (lambda: tfr.AffineCoupling(tfr.ChannelMask(), _shallow_network()), _VECTORS),
}
_CONDITIONAL = [name for name, (_, condition) in _FLOWS.items() if condition is not None]


def _distribution(name, wrap=lambda flow: flow):
    flow, shape = _FLOWS[name][0](), (3,) if name.startswith("vector") else _IMAGE
    flow.forward(tf.zeros([1, *shape]), **_condition(name, 1)["bijector_kwargs"])
    return tfd.TransformedDistribution(ft.standard_normal(shape), wrap(ft.randomize(flow)))


def _condition(name, number):
    condition = _FLOWS[name][1]
    kwargs = {} if condition is None else {"conditional_input": condition[:number]}
    return {"bijector_kwargs": kwargs}


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *((name, "eager") for name in _FLOWS),
        *[("vector_labels", "function"), *ft.full(("image", "function"))],
    ],
)
def test_no_samples_and_their_log_prob(name, mode):
    flow = _distribution(name)
    event, options = flow.event_shape, _condition(name, 0)

    def call():
        samples = flow.sample(0, seed=(0, 1), **options)
        with_log_prob = flow.experimental_sample_and_log_prob([2, 0], seed=(0, 1), **options)
        return samples, flow.log_prob(tf.identity(samples), **options), *with_log_prob

    results = (tf.function(call) if mode == "function" else call)()
    shapes = [[0, *event], [0], [2, 0, *event], [2, 0]]
    assert [result.shape.as_list() for result in results] == shapes


@pytest.mark.parametrize(
    ("name", "jit_compile"),
    [
        *[("image_labels", False), ("vector_vectors", False)],
        *ft.full(("vector", True), ("image_labels", True)),
    ],
)
def test_a_function_of_any_number_of_events(name, jit_compile):
    flow = _distribution(name)
    condition = _FLOWS[name][1]
    specs = [tf.TensorSpec([None, *flow.event_shape])]
    if condition is not None:
        specs.append(tf.TensorSpec([None, *condition.shape[1:]], condition.dtype))

    @tf.function(input_signature=specs, jit_compile=jit_compile)
    def call(x, *conditions):
        options = {"conditional_input": conditions[0]} if conditions else {}
        with tf.GradientTape() as tape:
            tape.watch(x)
            log_prob = flow.log_prob(x, bijector_kwargs=options)
        gradients = tape.gradient(log_prob, [x, *flow.trainable_variables])
        return flow.bijector.inverse(x, **options), log_prob, gradients

    x = tf.random.stateless_uniform([2, *flow.event_shape], (0, 1))
    for number in (0, 2):
        options = _condition(name, number)
        conditions = options["bijector_kwargs"].values()
        latents, log_prob, (gradient, *of_variables) = call(x[:number], *conditions)
        assert latents.shape == gradient.shape == x[:number].shape
        assert log_prob.shape == [number]
        if not number:
            assert all((tf.convert_to_tensor(g).numpy() == 0).all() for g in of_variables)
            continue
        x = tf.identity(x[:number])
        expected = flow.bijector.inverse(x, **options["bijector_kwargs"])
        expected = expected, flow.log_prob(x, **options)
        ft.assert_close((latents, log_prob), expected, rtol=1e-4, atol=1e-4)


def test_a_number_of_samples_that_a_graph_does_not_know():
    flow = _distribution("image")
    sample = tf.function(flow.sample, input_signature=[tf.TensorSpec([], tf.int32)])
    assert sample(0).shape == [0, *_IMAGE] and sample(2).shape == [2, *_IMAGE]


@pytest.mark.parametrize("name", _CONDITIONAL)
def test_a_fixed_condition(name):
    flow, condition = _distribution(name), _FLOWS[name][1]
    event = flow.event_shape.as_list()
    conditioned, of_none = (tfr.condition(flow, condition[:number]) for number in (2, 0))
    samples = conditioned.sample(0)
    assert samples.shape == [0, 2, *event] and conditioned.log_prob(samples).shape == [0, 2]
    assert of_none.batch_shape == [0]
    assert of_none.sample(3).shape == [3, 0, *event]
    # The leading shape of the result is empty where only that of the condition is.
    x = np.full(event, 0.5, np.float32)
    assert of_none.log_prob(x).shape == [0]
    assert of_none.log_prob(np.stack([x] * 5)[:, np.newaxis]).shape == [5, 0]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda flow: tfr.FlowChain([tfb.Invert(tfb.Chain([flow]))]),
        # 0 is no data.
        lambda flow: tfb.Chain([tfr.FlowChain([tfb.Exp(), flow], event_ndims=1)]),
    ],
    ids=["flow_chain", "exp"],
)
def test_nested_bijectors(wrap):
    flow = _distribution("vector", wrap)
    with tf.GradientTape() as tape:
        log_prob = flow.log_prob(tf.zeros([2, 0, 3]))
    assert log_prob.shape == [2, 0]
    gradients = tape.gradient(log_prob, flow.trainable_variables)
    assert all((tf.convert_to_tensor(gradient).numpy() == 0).all() for gradient in gradients)
    assert flow.sample(0).shape == [0, 3]


def test_errors():
    flow = _distribution("vector")
    match = "expected at least one event for training=True"
    with ft.unchanged(flow), pytest.raises(ValueError, match=match):
        flow.log_prob(tf.zeros([0, *flow.event_shape]), bijector_kwargs={"training": True})
    flow = _distribution("image")
    with pytest.raises(ValueError, match=r"expected images with pixels, got shape \(1, 0, 4, 2\)"):
        flow.bijector.inverse(tf.zeros([1, 0, 4, 2]))
