import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf

import tfp_realnvp as tfr

pytestmark = [pytest.mark.quick, pytest.mark.core]

# `tests/benchmarks/test_jet_reference.py` compares the network with another implementation.


def _network(dtype="float32", **kwargs):
    options = {"num_blocks": 2, "num_filters": 8, "num_heads": 2, **kwargs}
    network = tfr.VisionTransformer(6, dtype=dtype, **options)
    network.build((None, 2, 4, 3))
    return network


def _images(dtype=tf.float32):
    return ft.normal([3, 2, 4, 3], dtype)


def test_it_starts_at_zero():
    np.testing.assert_array_equal(_network()(_images()), np.zeros([3, 2, 4, 6]))


def test_half_precision():
    single, half = ft.randomize(_network()), _network("mixed_bfloat16")
    half.set_weights(single.get_weights())
    outputs = half(_images())
    assert outputs.dtype == tf.float32
    np.testing.assert_allclose(outputs, single(_images()), atol=0.03)
    # The last layer is in full precision.
    assert np.abs(outputs - tf.cast(tf.cast(outputs, tf.bfloat16), tf.float32)).max() > 0


@pytest.mark.parametrize("shape", [(5,), (2, 4, 5)])
def test_condition(shape):
    network = _network("float64", conditional_event_shape=shape)
    conditions = ft.normal([3, *shape], tf.float64)
    images = _images(tf.float64)
    ft.randomize(network)
    outputs = network(images, conditional_input=conditions)
    assert np.abs(outputs - network(images, conditional_input=0 * conditions)).max() > 1e-2
    # Images of zeros add nothing, so that the condition alone makes the tokens.
    network.input_kernel.assign(np.concatenate([np.zeros([2, 8]), np.ones([1, 8])]))
    network.condition_kernel.assign(np.concatenate([np.zeros([4, 8]), np.ones([1, 8])]))
    last = conditions[..., 4:] if len(shape) == 3 else conditions[:, None, None, 4:]
    moved = tf.concat([images[..., :2], images[..., 2:] + last], axis=-1)
    expected = network(moved, conditional_input=0 * conditions)
    actual = network(images, conditional_input=conditions)
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)


def test_bad_arguments():
    with pytest.raises(ValueError, match="expected a known height and width, for the embedding"):
        tfr.VisionTransformer(6).build((None, None, 4, 3))
