"""Log densities as numbers: against known densities."""

import math

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr

pytestmark = pytest.mark.quick

tfb = tfp.bijectors
tfd = tfp.distributions


@pytest.mark.parametrize("num_values", [256, 17])
@pytest.mark.parametrize(("dtype", "tolerance"), [(tf.float32, 1e-5), (tf.float64, 1e-12)])
def test_uniform_pixels_cost_log2_of_the_grey_levels(num_values, dtype, tolerance):
    shape = [8, 8, 3]
    logit = tfr.PixelLogit(num_values=num_values, dtype=dtype)
    uniform = tfd.Sample(tfd.Uniform(tf.zeros([], dtype), tf.constant(num_values, dtype)), shape)
    # The density of the logits of uniform pixels, by TFP's own bijectors.
    alpha = tf.constant(0.05, dtype)
    scale = tfb.Scale((1 - 2 * alpha) / tf.cast(num_values, dtype))
    to_logits = tfb.Chain([tfb.Invert(tfb.Sigmoid()), tfb.Shift(alpha), scale])
    logits = tfd.TransformedDistribution(uniform, to_logits)
    flow = tfd.TransformedDistribution(logits, logit)
    images = ft.pixels([4, *shape], dtype) * (num_values / 256)
    bits = tfr.bits_per_dim(flow.log_prob(images), np.prod(shape))
    np.testing.assert_allclose(bits, math.log2(num_values), rtol=tolerance)


def test_density_of_pixels_integrates_to_one():
    # Images of 2 × 1 pixels with one channel: a density in the plane.
    first, second = (ft.coupling(tfr.CheckerboardMask(i), 1, tf.float64) for i in (0, 1))
    norm = tfr.BatchNormalization(num_channels=1, dtype=tf.float64)
    logit = tfr.PixelLogit(num_values=4, dtype=tf.float64)
    bijector = tfr.FlowChain([logit, first, norm, second], dtype=tf.float64)
    ft.randomize(bijector)
    flow = tfd.TransformedDistribution(ft.standard_normal([2, 1, 1], tf.float64), bijector)
    edges = np.linspace(logit.low, logit.high, 801)
    middles = (edges[1:] + edges[:-1]) / 2
    grid = np.stack(np.meshgrid(middles, middles), axis=-1).reshape(-1, 2, 1, 1)
    probability = np.exp(flow.log_prob(grid)).sum() * (edges[1] - edges[0]) ** 2
    np.testing.assert_allclose(probability, 1, rtol=1e-3)
