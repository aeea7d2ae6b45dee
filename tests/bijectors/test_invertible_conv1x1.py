"""The learned mixing of channels, alone and joined with an `ActNorm` next to it."""

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

import tfp_realnvp as tfr

pytestmark = [pytest.mark.core, pytest.mark.quick]


def test_starts_as_a_rotation():
    matrix = tfr.InvertibleConv1x1(6).factors.matrix().numpy()
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(6), atol=1e-5)
    assert np.abs(matrix - np.eye(6)).max() > 0.1


def test_is_the_matrix_at_each_position():
    bijector = ft.randomize(tfr.InvertibleConv1x1(5, dtype=tf.float64))
    matrix, y = bijector.factors.matrix(), ft.normal([2, 3, 4, 5], tf.float64)
    x, ildj = bijector.inverse_and_log_det(y)
    np.testing.assert_allclose(x, np.einsum("kc,bhwc->bhwk", matrix, y), rtol=1e-9, atol=1e-12)
    expected = 3 * 4 * np.linalg.slogdet(matrix)[1]
    assert abs(expected) > 0.1
    np.testing.assert_allclose(ildj, [expected, expected], rtol=1e-9)
    identity = matrix @ bijector.factors.inverse_matrix()
    np.testing.assert_allclose(identity, np.eye(5), rtol=1e-9, atol=1e-9)


# An `ActNorm` and an `InvertibleConv1x1` next to it are computed as one affine map of channels.


def _parts(event_ndims, mean=0.0, **options):
    """Returns a normalization that was set, and a convolution with other factors than at first."""
    options = {"event_ndims": event_ndims, "dtype": tf.float64, **options}
    dtype = options["dtype"]
    norm = tfr.ActNorm(num_channels=3, **options)
    norm.learned.shift.assign(mean + ft.normal([3], dtype, seed=1))
    norm.learned.log_scale.assign(ft.normal([3], dtype, seed=2))
    norm.learned.is_set.assign(1.0)
    conv = tfr.InvertibleConv1x1(3, **options)
    for variable in conv.trainable_variables:
        variable.assign_add(0.3 * ft.normal(variable.shape, dtype, seed=3))
    return norm, conv


# Events of images and of vectors.
@pytest.mark.parametrize("shape", [(5, 4, 2, 3), (5, 3), (2, 5, 3)])
@pytest.mark.parametrize("direction", ["inverse", "forward"])
def test_values_log_dets_and_gradients_are_those_of_both(shape, direction):
    event_ndims = 3 if len(shape) == 4 else 1
    norm, conv = _parts(event_ndims)
    parts = [conv, norm, conv, norm, norm, conv]
    chain = tfr.FlowChain(parts, dtype=tf.float64)
    # TFP calls each of them by itself.
    reference = tfb.Chain(parts)
    x = ft.normal(shape, tf.float64)
    variables = [*norm.trainable_variables, *conv.trainable_variables]
    results = []
    for bijector in (chain, reference):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = getattr(bijector, direction)(x)
            log_det_of = getattr(bijector, f"{direction}_log_det_jacobian")
            log_det = log_det_of(x, event_ndims=event_ndims)
            loss = tf.reduce_sum(y**3) + tf.reduce_sum(log_det**2)
        results.append([y, log_det, *tape.gradient(loss, [x, *variables])])
    assert [result.shape for result in results[0]] == [result.shape for result in results[1]]
    ft.assert_close(*results, rtol=1e-10, atol=1e-10)


def test_a_large_shift_costs_no_digits():
    norm, conv = _parts(1, mean=1e4, dtype=tf.float32)
    norm64, conv64 = _parts(1, mean=1e4)
    for one, other in zip((norm, conv), (norm64, conv64), strict=True):
        for variable, exact in zip(one.variables, other.variables, strict=True):
            exact.assign(tf.cast(variable, exact.dtype))
    y = norm.learned.shift + ft.normal([50, 3])
    expected = tfb.Chain([norm64, conv64]).inverse(tf.cast(y, tf.float64))
    actual = tfr.FlowChain([norm, conv]).inverse(y)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_the_first_batch_sets_the_normalization():
    norm, conv = tfr.ActNorm(), tfr.InvertibleConv1x1(2)
    chain = tfr.FlowChain([norm, conv])
    y = 3 + 2 * ft.normal([40, 4, 4, 2])
    # In evaluation, variables are made and stay as they are.
    np.testing.assert_allclose(chain.inverse(y), conv.inverse(y), rtol=1e-5, atol=1e-5)
    x, log_det = chain.inverse_and_log_det(y, training=True)
    np.testing.assert_allclose(norm.learned.shift, tf.reduce_mean(y, axis=[0, 1, 2]), rtol=1e-5)
    np.testing.assert_allclose(tf.math.reduce_std(norm.inverse(y)), 1.0, rtol=1e-3)
    again, log_det_again = chain.inverse_and_log_det(y, training=True)
    np.testing.assert_allclose(again, x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(log_det_again, log_det, rtol=1e-5)


def test_the_first_batch_sets_the_normalization_of_an_inverted_chain():
    inverted = tfb.Invert(tfr.FlowChain([tfr.ActNorm(), tfr.InvertibleConv1x1(2)]))
    x = inverted.inverse(3 + 2 * ft.normal([40, 4, 4, 2]), training=True)
    np.testing.assert_allclose(tf.reduce_mean(x, axis=[0, 1, 2]), 0.0, atol=1e-5)
    np.testing.assert_allclose(tf.math.reduce_std(x, axis=[0, 1, 2]), 1.0, rtol=1e-3)


class _OtherNorm(tfr.ActNorm):
    """A normalization of a user, which also reverses the signs."""

    def _inverse_and_log_det(self, y, p):
        x, log_det = super()._inverse_and_log_det(y, p)
        return -x, log_det


def test_a_subclass_is_not_joined():
    norm, conv = _parts(3)
    chains = ([each, conv] for each in (norm, _OtherNorm(**norm.parameters)))
    y = ft.normal([5, 4, 2, 3], tf.float64)
    plain, reversed_signs = (tfr.FlowChain(c, dtype=tf.float64).inverse(y) for c in chains)
    np.testing.assert_allclose(reversed_signs, -plain)


def test_wrong_channels_are_an_error():
    chain = tfr.FlowChain(_parts(3), dtype=tf.float64)
    for hook in (chain.inverse, chain.forward):
        with pytest.raises(ValueError, match=r"height, width, 3\]"):
            hook(tf.zeros([1, 2, 2, 4], tf.float64))
    # The normalization alone takes any number.
    with pytest.raises(ValueError, match=r"conv.*height, width, 3\]"):
        tfr.FlowChain([tfr.ActNorm(), tfr.InvertibleConv1x1(3)]).inverse(tf.zeros([3, 2, 2, 4]))
