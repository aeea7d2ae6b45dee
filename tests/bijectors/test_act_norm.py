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
    x, ildj = bijector.inverse_and_log_det(y, training=True)
    np.testing.assert_allclose(x.numpy().mean((0, 1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(x.numpy().var((0, 1, 2)), 1, rtol=1e-9)
    expected = -0.5 * 8 * np.log(y.numpy().var((0, 1, 2))).sum()
    np.testing.assert_allclose(ildj, np.full(5, expected), rtol=1e-9)
    # And no later one.
    before = [variable.numpy() for variable in bijector.variables]
    other = ft.normal([5, *_SHAPE], tf.float64, seed=3)
    training = bijector.inverse(other, training=True)
    for variable, value in zip(bijector.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    np.testing.assert_allclose(training, bijector.inverse(tf.identity(other)), rtol=1e-12)


def test_evaluation_does_not_set_it():
    bijector = tfr.ActNorm(num_channels=3)
    y = 3 * ft.normal([5, *_SHAPE]) + 1
    np.testing.assert_array_equal(bijector.inverse(y), y)
    assert float(bijector.learned.is_set) == 0


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
    for one, other in zip(first, gradient(tf.identity(y)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
