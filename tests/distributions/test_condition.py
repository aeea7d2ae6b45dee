"""Distributions with a fixed condition, and bases that depend on one.

In nested distributions: `tests/training/test_wrapped_flows.py`.
"""

import warnings

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr

tfb = tfp.bijectors
tfd = tfp.distributions

_SHAPE = (4, 4, 1)


def _class_base():
    """A learned Normal for each of five classes."""
    return ft.class_base(tf.Variable(3 * ft.normal([5, *_SHAPE], tf.float64), name="means"))


def _distribution(kind):
    if kind == "class_base":
        flow = ft.image_flow(_SHAPE, num_scales=1, num_couplings=1, dtype=tf.float64)
        return tfd.TransformedDistribution(_class_base(), flow)
    if kind == "label_and_class_base":
        flow = ft.conditional_flow("labels", dtype=tf.float64)
        return tfd.TransformedDistribution(_class_base(), flow)
    return ft.conditional_distribution(kind, "shallow", dtype=tf.float64)


def _condition(kind, batch, seed=0):
    return ft.condition("labels" if "class" in kind else kind, batch, tf.float64, seed)


_KINDS = [*ft.CONDITIONS, "class_base", "label_and_class_base"]
each_kind = pytest.mark.parametrize("kind", _KINDS)


def _options(bijector, condition):
    return {"conditional_input": condition} if bijector.accepts_conditional_input else {}


def _by_parts(distribution, x, condition):
    """The log densities of events under one condition, from the parts of the distribution."""
    bijector, base = distribution.bijector, distribution.distribution
    latents, ildj = bijector.inverse_and_log_det(x, **_options(bijector, condition))
    if isinstance(base, tfr.ConditionalBase):
        base = base.given(condition)
    return base.log_prob(latents) + ildj


@each_kind
@pytest.mark.parametrize("batch", [(), (3, 2)], ids=str)
def test_shapes_and_values(kind, batch):
    distribution, condition = _distribution(kind), _condition(kind, batch)
    given = tfr.condition(distribution, condition)
    assert given.batch_shape == batch and given.event_shape == _SHAPE
    shapes = given.batch_shape_tensor(), given.event_shape_tensor()
    assert [shape.numpy().tolist() for shape in shapes] == [list(batch), list(_SHAPE)]
    assert given.dtype == tf.float64
    assert given.sample(seed=(0, 1)).shape == (*batch, *_SHAPE)
    samples = given.sample([4, 2], seed=(0, 1))
    assert samples.shape == (4, 2, *batch, *_SHAPE)
    assert len(np.unique(samples[..., 0, 0, 0])) == 8 * np.prod(batch, dtype=int)
    x = ft.pixels([2, *batch, *_SHAPE], tf.float64)
    log_prob = given.log_prob(x)
    assert log_prob.shape == (2, *batch)
    # One event under all conditions.
    event = ft.pixels(_SHAPE, tf.float64, seed=1)
    one = given.log_prob(event)
    assert one.shape == batch
    for index in np.ndindex(*batch):
        events = tf.concat([x[(slice(None), *index)], event[tf.newaxis]], axis=0)
        expected = _by_parts(distribution, events, condition[index])
        actual = [*log_prob.numpy()[(slice(None), *index)], one[index]]
        np.testing.assert_allclose(actual, expected, rtol=1e-9)


@each_kind
def test_samples_follow_their_condition(kind):
    # Of the same noise, by the parts.
    distribution, condition = _distribution(kind), _condition(kind, (2,))
    given = tfr.condition(distribution, condition)
    sample, log_prob = given.experimental_sample_and_log_prob(3, seed=(0, 1))
    np.testing.assert_allclose(given.log_prob(tf.identity(sample)), log_prob, rtol=1e-8)
    with tfr.call_options(conditional_input=condition):
        latents = distribution.distribution.sample([3, 2], seed=(0, 1))
    for index in range(2):
        options = _options(distribution.bijector, condition[index])
        expected = distribution.bijector.forward(latents[:, index], **options)
        np.testing.assert_allclose(sample[:, index], expected, rtol=1e-9)
    other = tfr.condition(distribution, _condition(kind, (2,), seed=1)).sample(3, seed=(0, 1))
    assert np.abs(sample - other).max() > 1e-2


@each_kind
def test_in_a_function(kind):
    distribution, condition = _distribution(kind), _condition(kind, (2,))

    @tf.function(input_signature=[tf.TensorSpec([None, *condition.shape[1:]], condition.dtype)])
    def sample_and_log_prob(condition):
        given = tfr.condition(distribution, condition)
        assert given.batch_shape.as_list() == [None]
        x = given.sample(3, seed=(0, 1))
        return given.batch_shape_tensor(), x, given.log_prob(x)

    given = tfr.condition(distribution, condition)
    batch, x, log_prob = sample_and_log_prob(condition)
    assert batch.numpy().tolist() == [2]
    np.testing.assert_allclose(x, given.sample(3, seed=(0, 1)), rtol=1e-9)
    np.testing.assert_allclose(log_prob, given.log_prob(tf.identity(x)), rtol=1e-9)


@keras.saving.register_keras_serializable(package="tests")
def mixture_of_class(label, logits):
    components = tfd.Independent(tfd.Normal(tf.constant([[-1.0], [1.0]]), 0.1), 1)
    return tfd.MixtureSameFamily(tfd.Categorical(logits=tf.gather(logits, label)), components)


def test_gradients_of_samples_of_a_mixture():
    logits = tf.Variable([[0.0, 0.0], [0.5, 1.5]])
    base = tfr.ConditionalBase(mixture_of_class, [logits], event_shape=[1])
    flow = tfd.TransformedDistribution(base, tfb.Shift(3.0))
    given = tfr.condition(flow, 1)
    with tf.GradientTape() as tape, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TFP says that it uses the score function.
        # The divergence from a density ∝ exp(x), up to a constant.
        loss = tfp.vi.monte_carlo_variational_loss(
            lambda x: tf.reduce_sum(x, -1), given, sample_size=100_000, seed=(0, 1)
        )
    actual = tf.convert_to_tensor(tape.gradient(loss, logits))[1]
    p = 1 / (1 + np.exp(-1.0))
    # d/dlogit of p log p + (1 - p) log (1 - p) - (2 p - 1): the components do not overlap.
    expected = p * (1 - p) * (1.0 - 2.0)
    np.testing.assert_allclose(actual, [-expected, expected], atol=0.01)


def test_reparameterization_type():
    normal = ft.class_base(tf.Variable(ft.normal([5, 1])))
    mixture = tfr.ConditionalBase(mixture_of_class, [tf.zeros([2, 2])], event_shape=[1])
    for base, expected in ((normal, tfd.FULLY_REPARAMETERIZED), (mixture, tfd.NOT_REPARAMETERIZED)):
        flow = tfd.TransformedDistribution(tfd.Independent(base, 0), tfb.Shift(3.0))
        assert tfr.condition(flow, 1).reparameterization_type == expected
        # Without a condition, the distribution is not known.
        assert flow.reparameterization_type == tfd.NOT_REPARAMETERIZED


def test_a_missing_condition_has_the_size_of_the_images():
    options = {"conditional_event_shape": (None, None, 2), "condition_dropout": 0.1}
    flow = ft.conditional_distribution("images", "shallow", **options)
    x = ft.pixels([3, *_SHAPE])
    expected = tfr.condition(flow, np.full([4, 4, 2], np.nan)).log_prob(x)
    model, missing = tfr.FlowModel(flow, dequantize=False), tfr.condition(flow, None)
    for actual in (flow.log_prob(tf.identity(x)), missing.log_prob(x), tfr.log_prob(model, x)):
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
    in_graph = tf.function(flow.log_prob, input_signature=[tf.TensorSpec([None] * 3 + [1])])
    np.testing.assert_allclose(in_graph(x), expected, rtol=1e-5)
    z = tfr.latents.encode(flow, x.numpy())
    np.testing.assert_allclose(z, flow.bijector.inverse(x), rtol=1e-4, atol=1e-5)
    assert missing.sample(2).shape == model.sample(2).shape == (2, *_SHAPE)
    assert missing.batch_shape_tensor().shape == (0,)
    with pytest.raises(ValueError, match=r"height and width of the images, \(4, 4\), got \(1, 1\)"):
        flow.log_prob(x, bijector_kwargs={"conditional_input": np.full([1, 1, 2], np.nan)})


@pytest.mark.parametrize("kind", ["labels", "vectors"])
def test_a_conditional_base_with_a_condition_that_may_be_missing(kind):
    flow = ft.conditional_distribution(kind, condition_dropout=0.1)
    flow = flow.copy(distribution=ft.class_base(tf.Variable(ft.normal([5, *_SHAPE]))))
    for use in (tfr.FlowModel, lambda flow: tfr.condition(flow, 1)):
        with pytest.raises(ValueError, match=r"without a ConditionalBase.*got 0\.1"):
            use(flow)


def test_a_copy_has_the_same_condition():
    given = tfr.condition(_distribution("labels"), [3, 1])
    x = ft.pixels([2, *_SHAPE], tf.float64)
    np.testing.assert_array_equal(given.copy().log_prob(x), given.log_prob(x))
    other = given.copy(conditional_input=[1, 3])
    np.testing.assert_allclose(other.log_prob(x[::-1]), given.log_prob(x)[::-1], rtol=1e-9)


def test_training_reaches_the_statistics():
    distribution = ft.conditional_distribution("labels")
    given = tfr.condition(distribution, [3, 1])
    [norm, *_] = [p for p in distribution.submodules if isinstance(p, tfr.BatchNormalization)]
    before = norm.moving.mean.numpy()
    given.log_prob(ft.pixels([2, *_SHAPE]), training=True)
    assert np.abs(norm.moving.mean - before).max() > 0


def test_couplings_by_hand():
    # No embedding: the declared shape of the coupling's condition gives the batch shape.
    network = ft.network(1, 2, conditional_event_shape=[3])
    coupling = ft.randomize(tfr.AffineCoupling(tfr.CheckerboardMask(0), network))
    flow = tfd.TransformedDistribution(ft.standard_normal(_SHAPE), tfb.Chain([coupling]))
    condition = ft.normal([2, 3])
    given = tfr.condition(flow, condition)
    x = given.sample(5, seed=(0, 1))
    assert given.batch_shape == [2] and x.shape == (5, 2, *_SHAPE)
    for index in range(2):
        with tfr.call_options(conditional_input=condition[index]):
            expected = flow.log_prob(x[:, index])
        np.testing.assert_allclose(given.log_prob(x)[:, index], expected, rtol=1e-4)
    network = ft.ConditionedNetwork(2)
    coupling = tfr.AffineCoupling(tfr.CheckerboardMask(0), network)
    flow = tfd.TransformedDistribution(ft.standard_normal(_SHAPE), coupling)
    with pytest.raises(ValueError, match="couplings with a conditional_event_shape, which"):
        tfr.condition(flow, condition)


def _two_conditions():
    flow = ft.conditional_distribution("labels")
    return tfd.TransformedDistribution(flow, ft.conditional_flow("vectors"))


@pytest.mark.parametrize(
    ("make", "condition", "error", "match"),
    [
        (lambda: "flow", 0, TypeError, "a FlowModel or a tfd.Distribution, .* got 'flow'"),
        (lambda: ft.flow_distribution(_SHAPE), 0, ValueError, "distribution that takes a cond"),
        (lambda: _distribution("labels"), 9, ValueError, r"integer labels in \[0, 5\).*got \[9\]"),
        (_two_conditions, 0, ValueError, "to declare one condition"),
    ],
)
def test_errors(make, condition, error, match):
    with pytest.raises(error, match=match):
        tfr.condition(make(), condition)


# A base that depends on the condition.


def test_a_conditional_base_alone():
    base = _class_base()
    labels = tf.constant([[3], [1]])
    assert base.batch_shape == [] and base.event_shape == _SHAPE
    x = base.sample([2, 400], seed=(0, 1), conditional_input=labels)
    assert x.shape == (2, 400, *_SHAPE)
    means = tf.gather(base.trainable_variables[0], labels[:, 0])
    np.testing.assert_allclose(tf.reduce_mean(x, axis=1), means, atol=0.2)
    expected = tf.reduce_sum(tfd.Normal(means[:, None], 0.5).log_prob(x), axis=[-3, -2, -1])
    np.testing.assert_allclose(base.log_prob(x, conditional_input=labels), expected, rtol=1e-12)
    # Fewer dimensions than the condition has: each condition gets a sample.
    assert base.sample(seed=(0, 1), conditional_input=labels).shape == (2, 1, *_SHAPE)


def test_errors_of_a_base():
    with pytest.raises(ValueError, match="ConditionalBase: expected a conditional_input, got None"):
        _class_base().sample(2)
    base = tfr.ConditionalBase(
        lambda label: tfd.Independent(tfd.Normal(tf.zeros([2, 2, 1]), 1.0), 3), event_shape=_SHAPE
    )
    with pytest.raises(ValueError, match=r"a distribution of event_shape \(4, 4, 1\), got"):
        base.log_prob(tf.zeros(_SHAPE), conditional_input=0)


@pytest.mark.parametrize("kind", ["labels", "vectors"])
def test_slices_of_the_batch_shape(kind):
    flow = ft.conditional_distribution(kind)
    conditions = ft.condition(kind, (2, 3))
    conditioned, x = tfr.condition(flow, conditions), ft.pixels([4, 4, 1])
    log_probs = conditioned.log_prob(x).numpy()
    assert len(np.unique(log_probs)) > 3
    slices = [1, (1, 2), (slice(None), 2), (..., 2), (slice(0, 1), tf.newaxis, 1), slice(1, None)]
    for part in slices:
        sliced = conditioned[part]
        assert sliced.batch_shape == log_probs[part].shape
        np.testing.assert_allclose(sliced.log_prob(x), log_probs[part], rtol=1e-5)
        assert sliced.sample(2).shape == [2, *log_probs[part].shape, 4, 4, 1]
    with pytest.raises(IndexError, match="expected at most 2 indices of the batch shape"):
        conditioned[0, 0, 0]
