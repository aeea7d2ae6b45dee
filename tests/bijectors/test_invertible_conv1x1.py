"""The learned mixing of channels."""

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_realnvp as tfr

pytestmark = pytest.mark.quick


def test_starts_as_a_rotation():
    keras.utils.set_random_seed(0)
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
    np.testing.assert_allclose(
        matrix @ bijector.factors.inverse_matrix(), np.eye(5), rtol=1e-9, atol=1e-9
    )


def test_errors():
    with pytest.raises(ValueError, match=r"height, width, 2\], got"):
        tfr.InvertibleConv1x1(2).inverse(tf.zeros([1, 4, 4, 3]))
