import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_realnvp as tfr

pytestmark = pytest.mark.quick

_SHAPE = (4, 2, 4)


@pytest.mark.parametrize("use_scale", [True, False])
@pytest.mark.parametrize("kind", [tfr.CheckerboardMask, tfr.ChannelMask])
@pytest.mark.parametrize("parity", [0, 1])
def test_both_directions_are_equation_9(kind, parity, use_scale):
    mask = kind(parity)
    coupling = ft.randomize(ft.coupling(mask, 4, tf.float64, use_scale=use_scale))
    x = ft.normal([3, *_SHAPE], tf.float64)
    kept, _ = mask.split(x)

    def whole(changed):
        """Returns an image that is zero where the coupling keeps."""
        return mask.merge(tf.zeros_like(kept), mask.restrict(changed)).numpy()

    # `test_masks.py` has the elements of b.
    t, *s = tf.split(coupling.network(kept), 1 + use_scale, axis=-1)
    s = float(coupling.scale) * tf.tanh(s[0]) if use_scale else tf.zeros_like(t)
    x, b, s, t = x.numpy(), 1 - whole(tf.ones_like(t)), whole(s), whole(t)
    assert np.abs(t).max() > 0.1 and (np.abs(s).max() > 0.05) == use_scale
    assert (coupling.scale is None) == (not use_scale)
    for results, changed, log_det in (
        (coupling.inverse_and_log_det(x), x * np.exp(s) + t, s),
        (coupling.forward_and_log_det(x), (x - t) * np.exp(-s), -s),
    ):
        expected = b * x + (1 - b) * changed, ((1 - b) * log_det).sum((1, 2, 3))
        ft.assert_close(results, expected, rtol=1e-12)
        np.testing.assert_array_equal(results[0] * b, x * b)


def test_the_log_scale_is_bounded():
    # A network that gives 1000 everywhere: unbounded, its exponential would overflow.
    def network(x):
        return tf.fill([*tf.unstack(tf.shape(x))[:3], 8], 1e3)

    coupling = tfr.AffineCoupling(tfr.CheckerboardMask(0), network, scale=0.5)
    _, ildj = coupling.inverse_and_log_det(ft.normal([1, *_SHAPE]))
    np.testing.assert_allclose(ildj, [0.5 * np.prod(_SHAPE) / 2], rtol=1e-6)


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
    scale = keras.Variable(0.3)
    mask, network = tfr.CheckerboardMask(0), ft.network(4, 8)
    coupling = tfr.AffineCoupling(mask, network, scale=scale)
    assert coupling.scale is scale
    assert float(tfr.AffineCoupling(mask, network, scale=0.3).scale) == pytest.approx(0.3)
    assert float(tfr.AffineCoupling(mask, network).scale) == 1
    with pytest.raises(TypeError, match=r"scalar float32 keras\.Variable as scale, got <tf\.Var"):
        tfr.AffineCoupling(mask, network, scale=tf.Variable(0.3))
