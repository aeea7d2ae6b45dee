"""`FlowModel.sample`: temperature, guidance and conditions, by one graph."""

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr
from tfp_realnvp.bijectors.flow_bijector import surround_with

_SHAPE = (4, 4, 1)


def _conditional(kind="labels", network="shallow", dropout=0.1, **kwargs):
    return ft.conditional_distribution(kind, network, condition_dropout=dropout, **kwargs)


def _model(**kwargs):
    return tfr.FlowModel(_conditional(**kwargs))


# Guidance.


@pytest.mark.parametrize("kind", ft.CONDITIONS)
@pytest.mark.parametrize("network", [tfr.ConvResNet, tfr.ShallowConv])
def test_guidance_extrapolates_the_parameters_of_each_coupling(kind, network):
    options = {"num_blocks": 1} if network is tfr.ConvResNet else {}
    layer = tfr.coupling_layer(tfr.network_of(network, **options), 4)
    options = {"num_couplings": 1, **ft.CONDITIONS[kind], "condition_dropout": 0.1}
    flow = ft.randomize(tfr.multi_scale(_SHAPE, 1, layer, **options))
    couplings = [part for part in flow.submodules if isinstance(part, tfr.Coupling)]
    assert len(couplings) == 2
    embedding, weight = flow.condition_embedding, 0.7
    condition = ft.condition(kind, [3])
    embedded = embedding(condition)
    missing = tf.broadcast_to(embedding.no_condition, embedded.shape)

    def guided(coupling, z):
        kept, changed = coupling.mask.split(z)
        a, b = (coupling.network(kept, conditional_input=c) for c in (embedded, missing))
        parameters = (1 + weight) * a - weight * b
        return coupling.transformer.forward(changed, coupling.mask.restrict(parameters))[0]

    z = expected = ft.normal([3, *_SHAPE])
    for coupling in reversed(couplings):
        expected = guided(coupling, expected)
    with surround_with(guidance=tf.constant(weight)):
        actual = flow.forward(z, conditional_input=condition)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    # The identity keeps the cache from returning the guided pass.
    plain = flow.forward(tf.identity(z), conditional_input=condition)
    assert np.abs(actual - plain).max() > 1e-2


def test_guidance_with_recomputed_networks_and_gradients():
    z, labels = ft.normal([3, *_SHAPE]), ft.condition("labels", [3])
    gradients = []
    for is_recomputed in (False, True):
        keras.utils.set_random_seed(0)
        flow = _conditional(recompute=is_recomputed).bijector
        with tf.GradientTape() as tape, surround_with(guidance=tf.constant(0.5)):
            loss = tf.reduce_sum(flow.forward(z, conditional_input=labels) ** 2)
        gradients.append(tape.gradient(loss, flow.trainable_variables))
    ft.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_guidance_of_one_element_leaves_out_the_condition_in_each_input():
    options = {"num_couplings": 1, "mixing": None, "normalization": None, "num_classes": 3}
    flow = ft.randomize(ft.vector_flow(1, condition_dropout=0.1, **options))
    [coupling] = (part for part in flow.submodules if isinstance(part, tfr.Coupling))
    z, labels, weight = ft.normal([3, 1]), tf.constant([0, 2, 1]), 0.7
    # A coupling of one element keeps nothing, so its network's input is the condition.
    a, b = (
        coupling.network(embedded, conditional_input=embedded)
        for embedded in map(flow.condition_embedding, (labels, tf.fill([3], -1)))
    )
    expected, _ = coupling.transformer.forward(z, (1 + weight) * a - weight * b)
    with surround_with(guidance=weight):
        actual = flow.forward(z, conditional_input=labels)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_guidance_needs_parameters():
    def function(x, n, conditional_input):
        return conditional_input, None

    coupling = tfr.real_nvp_coupling(num_masked=1, shift_and_log_scale_fn=function)
    p = tfr.Pass(condition=tf.ones([3, 1]), guidance=0.5, no_condition=tf.zeros([3, 1]))
    with pytest.raises(ValueError, match="expected a coupling with a transformer for guidance"):
        coupling._forward_and_log_det(tf.ones([3, 2]), p)


# Samples.


def test_they_are_samples_of_the_distribution():
    model, seed = _model(), tf.constant([3, 0])
    flow = model.distribution
    for options in ({}, {"conditional_input": ft.condition("labels", [5])}):
        expected = flow.sample(5, seed=seed, bijector_kwargs=options)
        np.testing.assert_allclose(model.sample(5, 3, **options), expected, rtol=1e-4, atol=1e-3)
    z = flow.distribution.sample(5, seed=seed)
    with surround_with(guidance=0.5):
        expected = flow.bijector.forward(0.7 * z, conditional_input=2)
    actual = model.sample(5, 3, temperature=0.7, guidance=0.5, conditional_input=2)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-3)


def test_the_graph_is_traced_once():
    network_fn, layers = ft.counting(ft.resnet)
    model, options = _model(network_fn=network_fn), {"guidance": 0.1, "conditional_input": 1}
    results = []
    # With the condition and without it.
    assert ft.counts(layers, lambda: results.append(model.sample(3, 0, **options))) == {2}
    [first] = results
    for n, guidance, temperature in ((3, 0.1, 1.0), (4, 0.2, 0.9), (1, 1.0, 1.0)):
        model.sample(n, n, guidance=guidance, temperature=temperature, conditional_input=[2])
    # Nothing is kept from other calls, and later weights count.
    np.testing.assert_array_equal(model.sample(3, 0, **options), first)
    for variable in model.trainable_variables:
        variable.assign(0.9 * variable)
    assert np.abs(model.sample(3, 0, **options) - first).max() > 1e-3
    assert {layer.count for layer in layers} == {2}


def test_seeds():
    model = _model()
    first, same, other = model.sample(4, 7), model.sample(4, (7, 0)), model.sample(4, 8)
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 1
    assert np.abs(model.sample(4) - model.sample(4)).max() > 1
    keras.utils.set_random_seed(3)
    drawn = model.sample(4)
    keras.utils.set_random_seed(3)
    np.testing.assert_array_equal(model.sample(4), drawn)


def test_vectors_and_other_distributions():
    model = tfr.FlowModel(ft.vector_distribution(2, num_classes=3))
    samples = model.sample(3, conditional_input=[0, 1, 2])
    assert samples.shape == (3, 2) and np.isfinite(samples).all()
    model = tfr.FlowModel(tfd.Independent(tfd.Normal(tf.ones([3]), 1.0), 1))
    expected = model.distribution.sample(4, seed=tf.constant([1, 0]))
    np.testing.assert_array_equal(model.sample(4, 1), expected)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_samples": 0}, "num_samples of at least 1, got 0"),
        ({"temperature": -0.1}, "a finite temperature of at least 0, got -0.1"),
        ({"temperature": float("nan")}, "a finite temperature"),
        ({"guidance": -0.5}, "a finite guidance of at least 0, got -0.5"),
        ({"guidance": float("inf")}, "a finite guidance"),
        ({"guidance": 0.5}, "a conditional_input with guidance=0.5, got None"),
        ({"conditional_input": 5}, r"integer labels in \[0, 5\) or -1, got \[5\]"),
        ({"conditional_input": [1, 2]}, "one condition, or one for each of 3 samples"),
    ],
)
def test_errors(options, match):
    with pytest.raises(ValueError, match=match):
        _model().sample(**{"num_samples": 3, **options})


def test_arguments_that_a_model_cannot_honor():
    no_dropout = _model(dropout=None)
    with pytest.raises(ValueError, match=r"condition_dropout=0.1.*got 0.5"):
        no_dropout.sample(3, guidance=0.5, conditional_input=1)
    with pytest.raises(ValueError, match=r"conditional_input of integer labels.*got None"):
        no_dropout.sample(3)
    without = tfr.FlowModel(ft.flow_distribution(_SHAPE))
    with pytest.raises(ValueError, match=r"with and without its condition.*got 0.5"):
        without.sample(3, guidance=0.5)
    with pytest.raises(ValueError, match=r"no conditional_input.*num_classes=10"):
        without.sample(3, conditional_input=1)
    base = tfd.Sample(tfd.Normal(0.0, tf.Variable(2.0)), _SHAPE)
    learned = tfr.FlowModel(tfd.TransformedDistribution(base, ft.image_flow(_SHAPE)))
    with pytest.raises(ValueError, match="temperature=1, because the base"):
        learned.sample(3, temperature=0.5)
    assert learned.sample(3).shape == (3, *_SHAPE)
