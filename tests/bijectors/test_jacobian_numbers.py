"""Log densities as numbers: against the Jacobian of a whole model, and against known densities."""

import math

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from absl import flags
from tensorflow_probability.python.internal import test_util

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
    to_logits = tfb.Chain(
        [
            tfb.Invert(tfb.Sigmoid()),
            tfb.Shift(alpha),
            tfb.Scale((1 - 2 * alpha) / tf.cast(num_values, dtype)),
        ]
    )
    logits = tfd.TransformedDistribution(uniform, to_logits)
    flow = tfd.TransformedDistribution(logits, logit)
    images = ft.pixels([4, *shape], dtype) * (num_values / 256)
    bits = tfr.bits_per_dim(flow.log_prob(images), np.prod(shape))
    np.testing.assert_allclose(bits, math.log2(num_values), rtol=tolerance)


def test_standard_normal_latents_cost_what_numpy_says():
    # log N(logit) + log det of the logit, with the 1/256, written out.
    x = ft.pixels([2, 4, 4, 3], tf.float64)
    flow = tfd.TransformedDistribution(
        ft.standard_normal([4, 4, 3], tf.float64), tfr.PixelLogit(dtype=tf.float64)
    )
    p = 0.05 + 0.9 * x.numpy() / 256
    logit = np.log(p) - np.log1p(-p)
    log_prob = -0.5 * logit**2 - 0.5 * np.log(2 * np.pi) + np.log(0.9 / 256) - np.log(p * (1 - p))
    np.testing.assert_allclose(flow.log_prob(x), log_prob.sum((1, 2, 3)), rtol=1e-12)


def _two_pixel_flow(dtype=tf.float64):
    """A flow over images of 2 x 1 pixels with one channel: a density in the plane."""
    parts = [
        ft.coupling(tfr.CheckerboardMask(0), 1, dtype),
        tfr.BatchNormalization(num_channels=1, dtype=dtype),
        ft.coupling(tfr.CheckerboardMask(1), 1, dtype),
    ]
    return ft.randomize(tfr.FlowChain(parts, dtype=dtype))


def test_density_of_the_plane_integrates_to_one():
    flow = tfd.TransformedDistribution(ft.standard_normal([2, 1, 1], tf.float64), _two_pixel_flow())
    axis = np.linspace(-12, 12, 601)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2, 1, 1)
    probability = np.exp(flow.log_prob(grid)).sum() * (axis[1] - axis[0]) ** 2
    np.testing.assert_allclose(probability, 1, rtol=1e-6)


def test_density_of_pixels_integrates_to_one():
    logit = tfr.PixelLogit(num_values=4, dtype=tf.float64)
    bijector = tfr.FlowChain([logit, _two_pixel_flow()], dtype=tf.float64)
    flow = tfd.TransformedDistribution(ft.standard_normal([2, 1, 1], tf.float64), bijector)
    edges = np.linspace(logit.low, logit.high, 801)
    middles = (edges[1:] + edges[:-1]) / 2
    grid = np.stack(np.meshgrid(middles, middles), axis=-1).reshape(-1, 2, 1, 1)
    probability = np.exp(flow.log_prob(grid)).sum() * (edges[1] - edges[0]) ** 2
    np.testing.assert_allclose(probability, 1, rtol=1e-3)


class _Helpers(test_util.VectorDistributionTestHelpers, test_util.TestCase):
    __test__ = False  # its own methods are no tests

    def runTest(self):
        """`unittest` constructs a case only with a test."""


def test_samples_and_log_prob_agree_by_the_helper_of_tfp():
    # The volume of a disc, by importance sampling: samples and density have to be of one
    # distribution.
    bijector = tfb.Chain([tfb.Reshape([2], [2, 1, 1]), _two_pixel_flow()])
    flow = tfd.TransformedDistribution(ft.standard_normal([2, 1, 1], tf.float64), bijector)
    helpers = _Helpers()
    # It asks for a command-line flag.
    flags.FLAGS.mark_as_parsed()
    center = flow.sample(2000, seed=(0, 1)).numpy().mean(0)
    helpers.run_test_sample_consistent_log_prob(
        helpers.evaluate,
        flow,
        num_samples=100_000,
        radius=1.0,
        center=center,
        seed=1,
        rtol=0.03,
    )
