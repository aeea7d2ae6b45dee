"""A flow obeys `training` and its condition wherever TFP evaluates it."""

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr

pytestmark = pytest.mark.eager

_SHAPE = (4,)
# Far from zero: without normalization, each row has thousands of nats.
_ROWS = (100 + 10 * ft.normal([64, 4])).numpy()


def _flow(normalization="actnorm", **options):
    options = {"num_couplings": 2, "num_filters": 4, "normalization": normalization, **options}
    return tfr.RealNVPVector(4, **options)


def _layers(normalization):
    """Returns a flow that `tfb.Invert` can turn around: `forward` normalizes data, too."""
    layer = tfr.coupling_layer(
        tfr.network_of(tfr.DenseResNet, num_blocks=1), 4, normalization=normalization
    )
    masks = [tfr.ChannelMask(i) for i in (0, 1)]
    return tfr.FlowChain([b for i, m in enumerate(masks) for b in layer(m, _SHAPE, f"layer{i}")])


def _given(bijector):
    return tfd.TransformedDistribution(ft.standard_normal(_SHAPE), bijector)


def _components(normalization):
    return [_given(_flow(normalization)) for _ in range(2)]


class _Holder(tfd.TransformedDistribution):
    """A user's distribution."""


class _Within(tfd.Distribution):
    """A user's distribution that evaluates a flow within another graph."""

    def __init__(self, flow, wrap):
        self.flow, self.wrap = flow, wrap
        super().__init__(tf.float32, tfd.NOT_REPARAMETERIZED, False, True, name="Within")

    def _batch_shape(self):
        return tf.TensorShape([])

    def _event_shape(self):
        return tf.TensorShape(_SHAPE)

    def _log_prob(self, value):
        return self.wrap(self.flow.log_prob, value)


def _in_parts(function, value):
    return tf.reshape(tf.map_fn(function, tf.reshape(value, [2, -1, *_SHAPE])), [-1])


_WRAPS = {
    "alone": lambda kind: _given(_flow(kind)),
    "chain": lambda kind: _given(tfb.Chain([tfb.Scale(2.0), _flow(kind)])),
    "flow chain of a chain": lambda kind: _given(
        tfr.FlowChain([tfb.Chain([tfb.Scale(2.0), _flow(kind)])], event_ndims=1)
    ),
    "twice inverted": lambda kind: _given(tfb.Chain([tfb.Invert(tfb.Invert(_flow(kind)))])),
    "mixture": lambda kind: tfd.Mixture(tfd.Categorical(logits=[0.0, 0.5]), _components(kind)),
    "mixture of one family": lambda kind: tfd.MixtureSameFamily(
        tfd.Categorical(logits=[0.0, 0.5]),
        tfd.BatchBroadcast(_given(_flow(kind)), [2]),
    ),
    "reshaped batch": lambda kind: tfd.BatchReshape(
        tfd.BatchBroadcast(_given(_flow(kind)), [1]), []
    ),
    "independent": lambda kind: tfd.Independent(_given(_flow(kind)), 0),
    "nested": lambda kind: tfd.TransformedDistribution(_given(_flow(kind)), tfb.Shift(1.0)),
    "blockwise": lambda kind: _given(
        tfb.Blockwise(
            [tfr.RealNVPVector(2, num_couplings=2, num_filters=4, normalization=kind)] * 2, [2, 2]
        )
    ),
    "user": lambda kind: _Holder(ft.standard_normal(_SHAPE), _flow(kind)),
    "loop": lambda kind: _Within(_given(_flow(kind)), _in_parts),
    "function": lambda kind: _Within(_given(_flow(kind)), lambda f, x: tf.function(f)(x)),
}


def _assert_learns(distribution, **options):
    keras.utils.set_random_seed(0)
    model = tfr.FlowModel(distribution)
    model.compile("adam", **options)
    model.fit(_ROWS, batch_size=32, epochs=2, verbose=0)
    # The log density of the rows under the normal distribution with their moments is -14.9.
    assert model.evaluate(_ROWS, verbose=0) < 30


@pytest.mark.parametrize("kind", ["actnorm", "batch"])
@pytest.mark.parametrize("wrap", _WRAPS)
def test_normalizations_learn_in_each_wrapper(wrap, kind):
    _assert_learns(_WRAPS[wrap](kind))


@pytest.mark.graph
def test_in_graphs_of_several_steps():
    _assert_learns(_WRAPS["mixture"]("batch"), steps_per_execution=2)


@pytest.mark.graph
@pytest.mark.parametrize("wrap", ["loop", "function"])
def test_within_a_graph_of_the_step(wrap):
    _assert_learns(_WRAPS[wrap]("actnorm"))


def test_inverted_flows():
    _assert_learns(_given(tfb.Invert(_layers("actnorm"))))
    inverted = _given(tfb.Invert(_layers("batch")))
    model = ft.compiled(inverted)
    match = "expected data to pass through layer0_norm by `inverse`, in which batch normalization"
    for call in (lambda: model.fit(_ROWS, verbose=0), lambda: model.train_on_batch(_ROWS)):
        with pytest.raises(ValueError, match=match):
            call()
    # Evaluation uses the statistics that the flow has.
    assert np.isfinite(inverted.log_prob(_ROWS)).all()


# Conditions.

_LABELS = np.arange(64) % 3


def _conditional():
    flow = ft.randomize(_flow(None, num_classes=3), seed=1)
    return tfd.TransformedDistribution(ft.standard_normal(_SHAPE), flow)


_CONDITIONED = {
    "mixture": lambda d: tfd.Mixture(tfd.Categorical(logits=[0.0, 0.5]), [d, d]),
    "chain": lambda d: tfd.TransformedDistribution(d.distribution, tfb.Chain([d.bijector])),
    "blockwise": lambda d: tfd.TransformedDistribution(
        d.distribution, tfb.Blockwise([d.bijector], [4])
    ),
    "nested": lambda d: tfd.TransformedDistribution(d, tfb.Scale(1.0)),
    "independent": lambda d: tfd.Independent(d, 0),
}


@pytest.mark.parametrize("wrap", _CONDITIONED)
def test_a_condition_reaches_each_wrapped_flow(wrap):
    flow = _conditional()
    wrapped, rows = _CONDITIONED[wrap](flow), ft.normal([64, 4])
    expected = tfr.condition(flow, _LABELS).log_prob(rows)
    model = ft.compiled(wrapped, keras.optimizers.SGD(1e-2))
    assert model.data_spec.condition_spec.num_classes == 3
    log_prob = model.predict((rows.numpy(), _LABELS), verbose=0)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5)
    with tfr.call_options(conditional_input=_LABELS):
        np.testing.assert_allclose(wrapped.log_prob(tf.identity(rows)), expected, rtol=1e-5)
    # TFP's caches do not confuse conditions.
    for labels in (_LABELS, 0 * _LABELS):
        given = tfr.condition(flow, labels).log_prob(tf.identity(rows))
        np.testing.assert_allclose(tfr.condition(wrapped, labels).log_prob(rows), given, rtol=1e-5)
    loss = model.fit(rows.numpy(), _LABELS, batch_size=64, verbose=0).history["loss"]
    assert loss == pytest.approx([-np.mean(expected)], rel=1e-5)
    with pytest.raises(ValueError, match="expected events and conditions, integer labels"):
        model.fit(rows.numpy(), verbose=0)


@pytest.mark.parametrize("number", [2, 5])
def test_conditions_where_the_batch_shape_changes_are_refused(number):
    # With as many components as events, the shapes would broadcast to wrong pairs.
    components = tfd.BatchBroadcast(_conditional(), [number])
    mixture = tfd.MixtureSameFamily(tfd.Categorical(logits=[0.0] * number), components)
    rows, labels = ft.normal([5, 4]).numpy(), np.arange(5) % 3
    model = ft.compiled(mixture)
    for call in (
        lambda: model.fit(rows, labels, verbose=0),
        lambda: model.predict((rows, labels), verbose=0),
        lambda: model.sample(5, conditional_input=labels),
        lambda: tfr.condition(mixture, labels),
    ):
        with pytest.raises(ValueError, match=r"takes none|declares none|takes a conditional_input"):
            call()


def test_samples_of_a_mixture_follow_their_conditions():
    flow = _conditional()
    mixture = tfd.Mixture(tfd.Categorical(logits=[0.0, 0.0]), [flow, flow])
    labels = np.repeat([0, 1, 2], 10_000)
    samples = tfr.FlowModel(mixture).sample(len(labels), seed=1, conditional_input=labels)
    for label in range(3):
        actual = samples.numpy()[labels == label]
        expected = tfr.condition(flow, label).sample(10_000, seed=(1, 2)).numpy()
        error = 5 * np.sqrt((actual.var(0) + expected.var(0)) / 10_000)
        assert np.all(np.abs(actual.mean(0) - expected.mean(0)) < error)
    means = [samples.numpy()[labels == label].mean(0) for label in range(3)]
    assert np.abs(means[0] - means[1]).max() > 0.2


def test_a_fixed_condition_is_not_replaced():
    flow, rows = _conditional(), ft.normal([5, 4])
    fixed = tfr.condition(flow, 2)
    mixture = tfd.Mixture(tfd.Categorical(logits=[0.0, 0.0]), [fixed, fixed])
    expected = fixed.log_prob(rows)
    with tfr.call_options(conditional_input=0):
        np.testing.assert_allclose(mixture.log_prob(rows), expected, rtol=1e-6)
        assert np.abs(flow.log_prob(rows) - expected).max() > 1e-2
    for distribution in (fixed, mixture):
        model = ft.compiled(distribution, keras.optimizers.SGD(0.0))
        model.fit(rows.numpy(), verbose=0)
        np.testing.assert_allclose(model.predict(rows.numpy(), verbose=0), expected, rtol=1e-5)
        with pytest.raises(ValueError, match="expected events without labels or conditions"):
            model.fit(rows.numpy(), np.zeros(5, int), verbose=0)


def test_a_missing_condition_in_a_chain_names_its_key():
    flow = _conditional()
    chain = tfd.TransformedDistribution(flow.distribution, tfb.Chain([flow.bijector]))
    rows = ft.normal([5, 4])
    with pytest.raises(
        ValueError, match=r"in a `tfb.Chain` in `bijector_kwargs={'real_nvp_vector'"
    ):
        chain.log_prob(rows, bijector_kwargs={"conditional_input": 1})
    log_prob = chain.log_prob(rows, bijector_kwargs={"real_nvp_vector": {"conditional_input": 1}})
    np.testing.assert_allclose(log_prob, tfr.condition(flow, 1).log_prob(rows), rtol=1e-6)


@pytest.mark.graph
def test_functions_with_graphs_of_their_own_refuse_the_options_of_the_context():
    flow, rows = _given(ft.randomize(_flow("batch"))), ft.normal([8, 4])
    before = ft.values(flow.variables)
    for function in (tfr.latents.encode, tfr.log_prob):
        expected = function(flow, rows.numpy())
        with tfr.call_options(training=True), pytest.raises(ValueError, match="outside of `tfr"):
            function(flow, rows.numpy())
        ft.assert_equal(function(flow, rows.numpy()), expected)
    ft.assert_equal(ft.values(flow.variables), before)


def test_options_of_the_context():
    flow, rows = ft.randomize(_flow("batch")), ft.normal([8, 4])
    start = ft.values(flow.variables)
    expected = flow.inverse(rows, training=True)
    ft.assign(flow.variables, start)
    with tfr.call_options(training=True):
        np.testing.assert_array_equal(flow.inverse(rows), expected)
        before = ft.values(flow.variables)
        # Keyword arguments take precedence, and inner contexts too.
        evaluated = flow.inverse(rows, training=False)
        with tfr.call_options(training=False):
            np.testing.assert_array_equal(flow.inverse(rows), evaluated)
    ft.assert_equal(ft.values(flow.variables), before)
    assert max(np.abs(a - b).max() for a, b in zip(before, start, strict=True)) > 1e-3
    with pytest.raises(TypeError, match="call_options: expected a Python bool as `training`"):
        with tfr.call_options(training=1):
            pass
    np.testing.assert_array_equal(flow.inverse(rows), evaluated)
