"""What XLA compiles gives what TensorFlow's own kernels give; its limits are those of BUILD.md."""

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf

pytestmark = pytest.mark.full

SHAPE = (4, 4, 1)


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


def test_fit_in_half_precision():
    options = {"num_scales": 1, "num_couplings": 1, "num_blocks": 0}
    flow = ft.flow_distribution(SHAPE, network_dtype="mixed_bfloat16", **options)
    start = ft.values(flow.variables)
    losses = []
    for jit_compile in (True, False):
        ft.assign(flow.variables, start)
        # Without noise, whose generator XLA seeds in its own way.
        model = ft.compiled(flow, dequantize=False, jit_compile=jit_compile)
        images = ft.grey_levels(5, SHAPE)
        # The last batch has one image: another shape, another compilation.
        history = model.fit(images, batch_size=2, epochs=1, shuffle=False, verbose=0)
        losses.append(history.history["loss"][0])
    # Rounding to 8 bits falls elsewhere when operations are fused.
    np.testing.assert_allclose(*losses, rtol=1e-2)
