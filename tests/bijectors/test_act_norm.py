import warnings

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr

pytestmark = pytest.mark.quick

tfd = tfp.distributions

_SHAPE = (4, 2, 3)


def test_the_first_training_batch_sets_it():
    bijector = tfr.ActNorm(dtype=tf.float64, epsilon=1e-12)
    y = 3 * ft.normal([5, *_SHAPE], tf.float64) + [1.0, 2.0, -4.0]
    # Evaluation does not.
    np.testing.assert_array_equal(bijector.inverse(y), y)
    x, ildj = bijector.inverse_and_log_det(y, training=True)
    np.testing.assert_allclose(x.numpy().mean((0, 1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(x.numpy().var((0, 1, 2)), 1, rtol=1e-9)
    expected = -0.5 * 8 * np.log(y.numpy().var((0, 1, 2))).sum()
    np.testing.assert_allclose(ildj, np.full(5, expected), rtol=1e-9)
    # And no later one.
    other = ft.normal([5, *_SHAPE], tf.float64, seed=3)
    with ft.unchanged(bijector):
        training = bijector.inverse(other, training=True)
    np.testing.assert_allclose(training, bijector.inverse(tf.identity(other)), rtol=1e-12)


def test_a_batch_that_is_not_finite_does_not_set_it():
    bijector = tfr.ActNorm()
    y = 3 * ft.normal([5, *_SHAPE]) + 1
    bijector.inverse(tf.where(y > 4, np.nan, y), training=True)
    assert not bijector.learned.is_known_to_be_set
    x = bijector.inverse(y, training=True)
    np.testing.assert_allclose(x.numpy().mean((0, 1, 2)), 0, atol=1e-6)


@pytest.mark.parametrize("mode", ["eager", "function"])
def test_a_tape_that_records_it_unset(mode):
    flow = tfr.RealNVPVector(2, num_couplings=2, num_filters=4)
    flow = tfd.TransformedDistribution(ft.standard_normal([2]), flow)
    rows = 300 + ft.normal([64, 2])

    def loss(rows, **options):
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(flow.log_prob(rows, bijector_kwargs=options))
        return loss, tape.gradient(loss, flow.trainable_variables)

    loss = tf.function(loss) if mode == "function" else loss
    with pytest.warns(UserWarning, match=r"bijector_kwargs=\{'training': True\}"):
        loss(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flow.log_prob(rows)
        value, _ = loss(rows, training=True)
        loss(rows)
    assert float(value) < 20


def test_a_chain_whose_variables_the_first_call_creates():
    chain = tfr.FlowChain([tfr.ActNorm()])
    flow = tfd.TransformedDistribution(ft.standard_normal(_SHAPE), chain)
    y = ft.normal([5, *_SHAPE])
    before = flow.log_prob(y).numpy()
    for variable in chain.trainable_variables:
        variable.assign_add(tf.ones(variable.shape))
    after = flow.log_prob(y)
    np.testing.assert_allclose(after, flow.log_prob(tf.identity(y)), rtol=1e-6)
    assert np.abs(after - before).min() > 1
    with tf.GradientTape() as tape:
        log_prob = flow.log_prob(y)
    assert all(g is not None for g in tape.gradient(log_prob, chain.trainable_variables))


def test_gradients_in_the_very_step_that_sets_it():
    bijector = tfr.ActNorm(num_channels=3, dtype=tf.float64)
    flow = tfd.TransformedDistribution(ft.standard_normal(_SHAPE, tf.float64), bijector)
    y = 3 * ft.normal([5, *_SHAPE], tf.float64) + 1

    def gradient(value, **options):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(flow.log_prob(value, bijector_kwargs=options))
        return tape.gradient(loss, flow.trainable_variables)

    first = gradient(y, training=True)
    # They are those of the affine map with the values that were set.
    ft.assert_close(first, gradient(tf.identity(y)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("is_set", [False, True])
def test_a_graph_that_is_traced_before_or_after_it_is_set(is_set):
    bijector = tfr.ActNorm(num_channels=3)
    first, second = 3 * ft.normal([5, *_SHAPE]) + 1, ft.normal([5, *_SHAPE], seed=3)
    expected = tfr.ActNorm(num_channels=3).inverse(first, training=True)
    if is_set:
        bijector.inverse(first, training=True)
    step = tf.function(lambda y: bijector.inverse(y, training=True))
    np.testing.assert_allclose(step(first), expected, rtol=1e-5, atol=1e-5)
    operations = step.get_concrete_function(second).graph.get_operations()
    assert [op.type for op in operations].count("AssignVariableOp") == (0 if is_set else 3)
    with ft.unchanged(bijector):
        step(second)
