"""Vectors of one element, and images of one channel: a coupling keeps nothing of them."""

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_realnvp as tfr

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("number", [0, 1, 256])
def test_log_prob_in_a_function(number):
    # In float32: oneDNN aborts the process where a kernel has no rows.
    distribution, x = ft.vector_distribution(1), ft.normal([number, 1])
    log_prob = tf.function(distribution.log_prob)(x)
    assert log_prob.shape == [number]
    np.testing.assert_allclose(log_prob, distribution.log_prob(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("transformer", ["affine", "rational_quadratic_spline"])
@pytest.mark.parametrize("condition", [{}, {"conditional_event_shape": [2]}, {"num_classes": 3}])
def test_all_variables_have_gradients(transformer, condition):
    flow = ft.vector_distribution(1, transformer=transformer, dtype=tf.float64, **condition)
    given = {} if not condition else {"conditional_input": np.array([0, 2, 1, 1])}
    if "conditional_event_shape" in condition:
        given = {"conditional_input": ft.normal([4, 2], tf.float64, seed=1)}
    with tf.GradientTape() as tape:
        log_prob = flow.log_prob(ft.normal([4, 1], tf.float64), bijector_kwargs=given)
        loss = tf.reduce_sum(tf.square(log_prob))
    variables = flow.trainable_variables
    gradients = tape.gradient(loss, variables)
    assert all(gradient is not None for gradient in gradients)
    pairs = zip(variables, gradients, strict=True)
    zero = [v.name for v, g in pairs if not np.abs(g.numpy()).max() > 0]
    # A 1×1 matrix has nothing off its diagonal.
    assert all("off_diagonal" in name for name in zero)


def test_a_network_of_images_of_which_nothing_is_kept():
    network = keras.layers.Conv2D(2, 3, padding="same")
    network.build((None, None, None, 1))
    coupling = tfr.AffineCoupling(tfr.ChannelMask(num_first=0), ft.randomize(network))
    y, fldj = coupling.forward_and_log_det(ft.normal([3, 4, 4, 1]))
    z, ildj = coupling.inverse_and_log_det(tf.identity(y))
    assert np.abs(fldj).min() > 1e-3
    np.testing.assert_allclose(z, ft.normal([3, 4, 4, 1]), atol=1e-5)
    np.testing.assert_allclose(fldj, -ildj, rtol=1e-5)
