"""`RealNVPVector`, beyond what `test_matrix.py` checks of every bijector."""

import re

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr

pytestmark = pytest.mark.quick


def _flow(size, **kwargs):
    return ft.vector_flow(size, **{"num_filters": 6, "num_blocks": 0, **kwargs})


@pytest.mark.parametrize(
    ("size", "transformer"),
    [
        *((size, "affine") for size in (1, 2, 3, 8, 17)),
        *((size, "rational_quadratic_spline") for size in (1, 3)),
        *((size, "logistic_mixture") for size in (1, 4)),
    ],
)
def test_every_size(size, transformer):
    flow = _flow(size, transformer=transformer, dtype=tf.float64)
    for part in flow.submodules:
        if isinstance(part, tfr.Coupling):
            # Splines of larger parameters are ill-conditioned.
            part.network.output_kernel.assign(0.3 * part.network.output_kernel)
    y = ft.normal([size], tf.float64)
    x, ildj = flow.inverse_and_log_det(y)
    np.testing.assert_allclose(flow.forward(tf.identity(x)), y, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(ildj, ft.jacobian_log_det(flow.inverse, y), rtol=1e-9, atol=1e-9)
    # The bound is for several vectors: an affine map of one number may move it little.
    y = 10 * ft.normal([4, size], tf.float64, seed=1)
    assert np.abs(flow.inverse(y) - y).max() > 0.1


def test_activation():
    x = ft.normal([5, 4])
    values = []
    for name in ("relu", "swish", None):
        keras.utils.set_random_seed(0)
        flow = _flow(4, num_blocks=1, activation=name)
        values.append(flow.inverse(x))
    assert all(np.abs(values[i] - values[i - 1]).max() > 1e-3 for i in range(3))
    copied = flow.copy(validate_args=True)
    np.testing.assert_array_equal(copied.inverse(tf.identity(x)), values[2])
    networks = [part.network for part in copied.submodules if isinstance(part, tfr.Coupling)]
    assert {network.activation for network in networks} == {"tanh"}


@pytest.mark.parametrize("size", [1, 6])
@pytest.mark.parametrize("condition", [{}, {"num_classes": 4}])
def test_starts_as_the_identity_without_mixing(size, condition):
    flow = tfr.RealNVPVector(size, mixing=None, **condition)
    x, given = ft.normal([4, size]), {"conditional_input": [3, 1, 0, 2]} if condition else {}
    y, fldj = flow.forward_and_log_det(x, **given)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(fldj, np.zeros(4))


def test_every_element_changes_and_is_a_condition():
    flow = _flow(5, mixing=None, num_couplings=2, dtype=tf.float64)
    jacobian = ft.jacobian(flow.inverse, ft.normal([5], tf.float64))
    # The elements that the first coupling keeps depend on all that it transforms, by the second.
    assert (jacobian[:2] != 0).all()
    assert np.count_nonzero(jacobian[2:]) == 3 * 2 + 3


def test_a_seed_determines_permutations():
    def orders(**options):
        flow = tfr.RealNVPVector(9, mixing="permutation", **options)
        parts = [part for part in flow.submodules if isinstance(part, tfb.Permute)]
        return [tuple(part.permutation.numpy()) for part in parts]

    assert orders() == orders() and len({*orders()}) == 12
    assert orders(seed=3) == orders(seed=3)
    assert {*orders(seed=3)}.isdisjoint(orders(seed=4))


def test_standardization_comes_first():
    data = np.random.default_rng(0).normal([1.0, 100.0], [0.1, 50.0], [1000, 2]).astype("float32")
    moments = tfr.Standardization.of(data)
    flow = tfr.RealNVPVector(2, mixing=None, standardization=moments)
    z, ildj = flow.inverse_and_log_det(data)
    np.testing.assert_allclose(np.mean(z, axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(np.std(z, axis=0), 1, atol=1e-4)
    np.testing.assert_allclose(ildj, -np.log(data.std(axis=0)).sum() * np.ones(1000), rtol=1e-4)
    assert not moments.variables
    # Constant columns keep their scale.
    data[:, 1] = 5.0
    np.testing.assert_allclose(tfr.Standardization.of(data).inverse(data)[:, 1], 0)


@pytest.mark.parametrize("condition", [{"num_classes": 4}, {"conditional_event_shape": [2]}])
def test_seed_of_all_weights(condition):
    options = {"num_couplings": 2, "num_filters": 6, **condition}
    one, other, new = (tfr.RealNVPVector(3, **options, seed=seed) for seed in (5, 5, 6))
    for v, w in zip(one.trainable_variables, other.trainable_variables, strict=True):
        np.testing.assert_array_equal(v, w, err_msg=v.name)
    of_embeddings = [flow.condition_embedding.trainable_variables[0] for flow in (one, new)]
    assert np.abs(np.subtract(*of_embeddings)).max() > 0.01


def test_learns_a_density():
    # x₂ | x₁ ~ N(x₁², 0.5²): the loss is the entropy plus the KL divergence.
    x1 = np.random.default_rng(0).normal(size=[4000, 1])
    x2 = np.random.default_rng(1).normal(x1**2, 0.5)
    data = np.concatenate([x1, x2], axis=1).astype(np.float32)
    flow = tfr.RealNVPVector(2, 4, 1, 16, standardization=tfr.Standardization.of(data))
    model = tfr.FlowModel(tfd.TransformedDistribution(ft.standard_normal([2]), flow))
    model.compile(keras.optimizers.Adam(1e-2))
    history = model.fit(data, batch_size=250, epochs=15, verbose=0)
    entropy = np.log(2 * np.pi * np.e) + np.log(0.5)
    assert history.history["loss"][0] > entropy + 0.1
    assert abs(history.history["loss"][-1] - entropy) < 0.06


# Vectors of one element, and images of one channel: a coupling keeps nothing of them.


@pytest.mark.parametrize("number", [0, 1, 256])
def test_log_prob_of_one_element_in_a_function(number):
    # In float32: oneDNN aborts the process where a kernel has no rows.
    distribution, x = ft.vector_distribution(1), ft.normal([number, 1])
    log_prob = tf.function(distribution.log_prob)(x)
    assert log_prob.shape == [number]
    np.testing.assert_allclose(log_prob, distribution.log_prob(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("transformer", ["affine", "rational_quadratic_spline"])
@pytest.mark.parametrize("condition", [{}, {"conditional_event_shape": [2]}, {"num_classes": 3}])
def test_all_variables_of_a_flow_of_one_element_have_gradients(transformer, condition):
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


# Errors.


@pytest.mark.parametrize("shape", [(4,), ()])
def test_bad_vectors(shape):
    flow = _flow(3, standardization=tfr.Standardization([0.0] * 3, [1.0] * 3))
    with pytest.raises(ValueError, match=rf"vectors \[..., 3\], got shape {re.escape(str(shape))}"):
        flow.inverse(tf.zeros(shape))
    flow = _flow(4, standardization=tfr.Standardization([0.0] * 3, [1.0] * 3))
    with pytest.raises(ValueError, match=r"standardization.*vectors \[..., 3\], got shape \(4,\)"):
        flow.inverse(tf.zeros([4]))


def test_images_and_vectors_do_not_mix():
    with pytest.raises(ValueError, match="equal event_ndims"):
        tfr.FlowChain([_flow(3), tfr.Squeeze()])
    with pytest.raises(ValueError, match="expected a ChannelMask for vectors"):
        tfr.AffineCoupling(tfr.CheckerboardMask(0), tfr.DenseResNet(2), event_ndims=1)
