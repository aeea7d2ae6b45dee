import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf

import tfp_realnvp as tfr

pytestmark = pytest.mark.quick

_SHAPE = (4, 2, 4)


def _explicit_mask(mask):
    """`b` of eq. 9, element by element."""
    b = np.zeros(_SHAPE)
    for row, column, channel in np.ndindex(_SHAPE):
        if isinstance(mask, tfr.CheckerboardMask):
            kept = (row + column) % 2 == 1
        else:
            kept = channel < _SHAPE[-1] // 2
        b[row, column, channel] = kept != bool(mask.parity)
    return b


def _s_and_t(coupling, x, b):
    """The network's outputs as whole images, zero wherever the coupling keeps."""
    if isinstance(coupling.mask, tfr.CheckerboardMask):
        output = coupling.network(tf.constant(b * x)).numpy()
        t, s = np.split(output, 2, axis=-1)
    else:
        half = _SHAPE[-1] // 2
        kept = slice(half) if coupling.mask.parity == 0 else slice(half, None)
        changed = slice(half, None) if coupling.mask.parity == 0 else slice(half)
        output = coupling.network(tf.constant(x[..., kept])).numpy()
        t, s = np.zeros_like(x), np.zeros_like(x)
        t[..., changed], s[..., changed] = np.split(output, 2, axis=-1)
    return float(coupling.scale) * np.tanh(s), t


masks = pytest.mark.parametrize(
    "mask",
    [
        tfr.CheckerboardMask(0),
        tfr.CheckerboardMask(1),
        tfr.ChannelMask(0),
        tfr.ChannelMask(1),
    ],
    ids=repr,
)


@masks
def test_inverse_is_equation_9(mask):
    coupling = ft.randomize(ft.coupling(mask, 4, tf.float64))
    x = ft.normal([3, *_SHAPE], tf.float64).numpy()
    b = _explicit_mask(mask)
    s, t = _s_and_t(coupling, x, b)
    expected = b * x + (1 - b) * (x * np.exp(s) + t)
    actual, ildj = coupling.inverse_and_log_det(tf.constant(x))
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    np.testing.assert_allclose(ildj, ((1 - b) * s).sum((1, 2, 3)), rtol=1e-12)
    assert np.abs((1 - b) * t).max() > 0.1 and np.abs((1 - b) * s).max() > 0.05


@masks
def test_forward_undoes_equation_9(mask):
    coupling = ft.randomize(ft.coupling(mask, 4, tf.float64))
    z = ft.normal([3, *_SHAPE], tf.float64).numpy()
    b = _explicit_mask(mask)
    s, t = _s_and_t(coupling, z, b)
    expected = b * z + (1 - b) * (z - t) * np.exp(-s)
    actual, fldj = coupling.forward_and_log_det(tf.constant(z))
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    np.testing.assert_allclose(fldj, -((1 - b) * s).sum((1, 2, 3)), rtol=1e-12)


@masks
def test_the_kept_half_is_kept_exactly(mask):
    coupling = ft.randomize(ft.coupling(mask, 4))
    x, b = ft.normal([3, *_SHAPE]), _explicit_mask(mask)
    for result in (coupling.forward(x), coupling.inverse(x)):
        np.testing.assert_array_equal(result * b, x * b)


@masks
def test_the_changed_half_does_not_move_the_network(mask):
    coupling = ft.randomize(ft.coupling(mask, 4, tf.float64))
    x, b = ft.normal([3, *_SHAPE], tf.float64), _explicit_mask(mask)
    other = x + (1 - b) * ft.normal([3, *_SHAPE], tf.float64, seed=8)
    # Both have the same shift and log scale, so that the difference is only scaled.
    np.testing.assert_allclose(
        coupling.inverse_log_det_jacobian(x, event_ndims=3),
        coupling.inverse_log_det_jacobian(other, event_ndims=3),
        rtol=1e-12,
    )


@masks
def test_additive_coupling(mask):
    coupling = ft.randomize(ft.coupling(mask, 4, tf.float64, use_scale=False))
    x, b = ft.normal([3, *_SHAPE], tf.float64), _explicit_mask(mask)
    y, ildj = coupling.inverse_and_log_det(x)
    assert coupling.scale is None and coupling.is_constant_jacobian
    np.testing.assert_array_equal(ildj, np.zeros(3))
    assert np.abs((y - x) * (1 - b)).max() > 0.1
    np.testing.assert_array_equal(y * b, x * b)
    # The shift depends on the kept half only.
    shifted = coupling.inverse(x + (1 - b))
    np.testing.assert_allclose(shifted - (1 - b), y, rtol=1e-9, atol=1e-12)


def test_the_log_scale_is_bounded():
    # A network that gives 1000 everywhere: unbounded, its exponential would overflow.
    def network(x):
        return tf.fill([*tf.unstack(tf.shape(x))[:3], 8], 1e3)

    coupling = tfr.AffineCoupling(tfr.CheckerboardMask(0), network, scale=0.5)
    _, ildj = coupling.inverse_and_log_det(ft.normal([1, *_SHAPE]))
    np.testing.assert_allclose(ildj, [0.5 * np.prod(_SHAPE) / 2], rtol=1e-6)


def test_a_function_as_network():
    coupling = tfr.AffineCoupling(
        tfr.ChannelMask(0), lambda x: tf.concat([tf.sin(x), tf.cos(x)], axis=-1), dtype=tf.float64
    )
    x = ft.normal(_SHAPE, tf.float64)
    expected = ft.jacobian_log_det(coupling.inverse, x)
    np.testing.assert_allclose(
        coupling.inverse_log_det_jacobian(x, event_ndims=3), expected, rtol=1e-9
    )
    assert coupling.trainable_variables == (coupling.scale,)


def test_training_reaches_the_network():
    seen = []

    def network(x, training):
        seen.append(training)
        return tf.concat([x, x], axis=-1)

    coupling = tfr.AffineCoupling(tfr.CheckerboardMask(0), network)
    x = ft.normal([1, *_SHAPE])
    coupling.inverse(x, training=True)
    coupling.inverse(x)
    coupling.forward(x, training=True)
    assert seen == [True, False, True]


def test_a_given_scale_is_shared():
    scale = tf.Variable(0.3)
    mask, network = tfr.CheckerboardMask(0), ft.network(4, 8)
    coupling = tfr.AffineCoupling(mask, network, scale=scale)
    assert coupling.scale is scale
    assert float(tfr.AffineCoupling(mask, network, scale=0.3).scale) == pytest.approx(0.3)
    assert float(tfr.AffineCoupling(mask, network).scale) == 1
