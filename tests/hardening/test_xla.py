"""What XLA compiles gives what TensorFlow's own kernels give; its limits are those of BUILD.md."""

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr

pytestmark = pytest.mark.full

tfd = tfp.distributions

SHAPE = (4, 4, 1)


def small_flow(policy="float32", **kwargs):
    """Returns a distribution that compiles in a moment."""
    coupling = tfr.AffineCoupling(tfr.CheckerboardMask(), tfr.ShallowConv(2, 3, dtype=policy))
    norm = tfr.BatchNormalization(num_channels=1)
    chain = tfr.FlowChain([tfr.PixelLogit(), coupling, norm], **kwargs)
    flow = tfd.TransformedDistribution(ft.standard_normal(SHAPE), chain)
    flow.log_prob(ft.pixels([1, *SHAPE]))
    ft.randomize(chain)
    return flow


def test_log_prob_and_samples():
    flow = small_flow()
    images = ft.pixels([3, *SHAPE])
    log_prob = tf.function(
        flow.log_prob, jit_compile=True, input_signature=[tf.TensorSpec([None, *SHAPE])]
    )
    # An unknown size of batch: compiled again for each that comes.
    for batch in (images, images[:1]):
        np.testing.assert_allclose(log_prob(batch), flow.log_prob(tf.identity(batch)), rtol=1e-5)

    @tf.function(jit_compile=True)
    def sample_and_log_prob(seed):
        samples = flow.sample(2, seed=seed)
        return samples, flow.log_prob(samples)

    samples, log_prob = sample_and_log_prob(tf.constant([0, 1]))
    np.testing.assert_allclose(log_prob, flow.log_prob(tf.identity(samples)), rtol=1e-5)
    np.testing.assert_array_equal(samples, sample_and_log_prob(tf.constant([0, 1]))[0])
    assert np.abs(samples - sample_and_log_prob(tf.constant([0, 2]))[0]).max() > 1


def test_half_precision():
    # Four couplings, whose networks round two outputs each to 8 bits.
    options = {"num_scales": 2, "num_blocks": 1, "num_couplings": 1}
    flow, single = (
        ft.flow_distribution(SHAPE, network_dtype=policy, **options)
        for policy in ("mixed_bfloat16", "float32")
    )
    images = ft.pixels([4, *SHAPE])

    @tf.function(jit_compile=True)
    def sample(seed):
        # `flow.sample`, but XLA has its own key for a seed, so that latents come out too.
        latents = flow.distribution.sample(4, seed=seed)
        return latents, flow.bijector.forward(latents)

    latents, samples = sample(tf.constant([0, 1]))
    log_prob = tf.function(flow.log_prob, jit_compile=True)(images)
    for compiled, eager, exact in (
        (log_prob, flow.log_prob(images), single.log_prob(images)),
        (samples, flow.bijector.forward(latents), single.bijector.forward(latents)),
    ):
        rounding = np.max(np.abs(eager - exact))
        # The networks did compute in half: float32 agrees to 1e-4 here.
        assert rounding > 1e-2
        # Fusion moves a few roundings. Measured: up to 1% of what all roundings together change.
        assert np.max(np.abs(compiled - eager)) < 0.1 * rounding
    np.testing.assert_allclose(log_prob, single.log_prob(images), rtol=8 * 2**-8)


# Rounding to 8 bits falls elsewhere when operations are fused.
@pytest.mark.parametrize(
    ("options", "tolerance"), [({"recompute": True}, 1e-5), ({"policy": "mixed_bfloat16"}, 1e-2)]
)
def test_fit(options, tolerance):
    flow = small_flow(**options)
    start = [variable.numpy() for variable in flow.variables]
    losses = []
    for jit_compile in (True, False):
        for variable, value in zip(flow.variables, start, strict=True):
            variable.assign(value)
        # Without noise, whose generator XLA seeds in its own way.
        model = tfr.FlowModel(flow, dequantize=False)
        model.compile(jit_compile=jit_compile)
        images = ft.grey_levels(5, SHAPE)
        # The last batch has one image: another shape, another compilation.
        history = model.fit(images, batch_size=2, epochs=1, shuffle=False, verbose=0)
        losses.append(history.history["loss"][0])
    np.testing.assert_allclose(*losses, rtol=tolerance)
