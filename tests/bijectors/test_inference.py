"""What joint distributions, `tfp.vi` and `tfp.mcmc` do with a flow of vectors."""

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras

import tfp_realnvp as tfr

tfd = tfp.distributions


def _distribution(size=3, **kwargs):
    return ft.vector_distribution(size, **{"num_filters": 6, "num_blocks": 0, **kwargs})


# Joint distributions.


@pytest.mark.parametrize("automatic", [False, True])
def test_part_of_a_joint_distribution(automatic):
    prior = _distribution()
    root = (lambda part: part) if automatic else tfd.JointDistributionCoroutine.Root

    def model():
        z = yield root(prior)
        yield tfd.Independent(tfd.Normal(2.0 * z, 1.0), 1)

    kind = "JointDistributionCoroutine" + ("AutoBatched" if automatic else "")
    joint = getattr(tfd, kind)(model)
    z, y = joint.sample(5, seed=0)
    expected = prior.log_prob(tf.identity(z)) + tf.reduce_sum(
        tfd.Normal(2.0 * z, 1.0).log_prob(y), axis=-1
    )
    assert z.shape == [5, 3]
    np.testing.assert_allclose(joint.log_prob(z, y), expected, rtol=1e-5)
    pinned = joint.experimental_pin(None, y)
    np.testing.assert_allclose(pinned.unnormalized_log_prob(z), expected, rtol=1e-5)


def test_samplers_of_joint_distributions_use_the_latents():
    # What `tfp.experimental.mcmc.windowed_adaptive_hmc` maps unconstrained vectors by.
    prior = _distribution()
    joint = tfd.JointDistributionSequential([prior, lambda z: tfd.HalfNormal(tf.exp(z[..., 0]))])
    bijector = joint.experimental_pin(None, 1.0).experimental_default_event_space_bijector()
    z = ft.normal([4, 3])
    np.testing.assert_allclose(bijector.forward([z])[0], prior.bijector.forward(z), rtol=1e-5)


def test_split_flow():
    # A posterior over a structure.
    def model():
        stddev = yield tfd.HalfNormal(1.0, name="stddev")
        mean = yield tfd.Sample(tfd.Normal(0.0, stddev), 2, name="mean")
        yield tfd.Normal(mean[0] * mean[1], 1.0, name="y")

    target = tfd.JointDistributionCoroutineAutoBatched(model).experimental_pin(y=0.5)
    network_fn, layers = ft.counting(tfr.network_of(tfr.DenseResNet, num_blocks=1))
    surrogate = tfp.experimental.vi.build_split_flow_surrogate_posterior(
        target.event_shape,
        trainable_bijector=ft.vector_flow(3, network_fn=network_fn),
        constraining_bijector=target.experimental_default_event_space_bijector(),
    )
    results, sample = [], surrogate.experimental_sample_and_log_prob
    assert ft.counts(layers, lambda: results.extend(sample(6, seed=(0, 1)))) == {1}
    parts, log_prob = results
    assert parts.stddev.shape == [6] and parts.mean.shape == [6, 2]
    assert np.min(parts.stddev) > 0
    copies = tf.nest.map_structure(tf.identity, parts)
    assert ft.counts(layers, lambda: results.append(surrogate.log_prob(copies))) == {1}
    np.testing.assert_allclose(results[-1], log_prob, rtol=1e-4)
    assert target.unnormalized_log_prob(parts).shape == [6]
    expected = len(surrogate.bijector.bijectors[-1].trainable_variables)
    assert len(surrogate.trainable_variables) == expected


# Variational inference.


@pytest.mark.parametrize(
    ("make_optimizer", "jit_compile"),
    [
        pytest.param(lambda: keras.optimizers.Adam(0.1), True, marks=pytest.mark.full),
        (lambda: tfr.FusedAdam(0.1), False),
        (lambda: tf_keras.optimizers.Adam(0.1), False),
    ],
    ids=["keras_xla", "fused", "tf_keras"],
)
def test_fit_surrogate_posterior(make_optimizer, jit_compile):
    target = tfd.MultivariateNormalDiag([1.0, -2.0], [0.5, 2.0])
    flow = tfr.RealNVPVector(2, 1, 0, 4, mixing=None)
    surrogate = tfd.TransformedDistribution(ft.standard_normal([2]), flow)
    optimizer = make_optimizer()
    if jit_compile:
        # No variables can be created under XLA.
        optimizer.build(surrogate.trainable_variables)
    options = {"sample_size": 32, "seed": (0, 1), "jit_compile": jit_compile}
    losses = tfp.vi.fit_surrogate_posterior(target.log_prob, surrogate, optimizer, 60, **options)
    # The loss is the divergence from the target.
    assert losses[0] > 1
    assert abs(np.mean(losses[-10:])) < 0.2


@pytest.mark.parametrize(
    ("estimator", "importance"), [("SCORE_FUNCTION", 1), ("REPARAMETERIZATION", 1), ("VIMCO", 4)]
)
def test_gradient_estimators(estimator, importance):
    surrogate = _distribution(2, num_couplings=1, dtype=tf.float64)
    zeros = tf.zeros([2], tf.float64)
    target = tfd.MultivariateNormalDiag(zeros, 2 + zeros)
    with tf.GradientTape() as tape:
        options = {"sample_size": 20_000, "importance_sample_size": importance, "seed": (0, 1)}
        options["gradient_estimator"] = tfp.vi.GradientEstimators[estimator]
        loss = tfp.vi.monte_carlo_variational_loss(target.log_prob, surrogate, **options)
    gradients = tape.gradient(loss, surrogate.trainable_variables)
    # All estimate the gradient of the same loss.
    with tf.GradientTape() as tape:
        samples, log_prob = surrogate.experimental_sample_and_log_prob(
            [20_000, importance], seed=(2, 3)
        )
        log_weights = tf.reduce_logsumexp(target.log_prob(samples) - log_prob, axis=1)
        expected = -tf.reduce_mean(log_weights) + np.log(importance)
    expected_gradients = tape.gradient(expected, surrogate.trainable_variables)
    np.testing.assert_allclose(loss, expected, atol=0.02)
    ft.assert_close(gradients, expected_gradients, atol=0.1)
    assert max(np.abs(gradient).max() for gradient in expected_gradients) > 0.5


# Markov chains.


@pytest.mark.parametrize("num_leapfrog_steps", [1, 3])
def test_one_pass_for_each_leapfrog_step(num_leapfrog_steps):
    number = tf.Variable(0)

    class Counting(tfr.DenseResNet):
        def call(self, inputs):
            number.assign_add(1)
            return super().call(inputs)

    def network_fn(*, output_channels, **_):
        return Counting(output_channels, 1, 4)

    flow = ft.vector_flow(4, num_couplings=1, network_fn=network_fn)
    hmc = tfp.mcmc.HamiltonianMonteCarlo(ft.standard_normal([4]).log_prob, 0.1, num_leapfrog_steps)
    kernel = tfp.mcmc.TransformedTransitionKernel(hmc, flow)
    state = ft.normal([5, 4])
    # In eager mode TFP itself computes the density once for its value and once for its gradient.
    results = tf.function(kernel.bootstrap_results)(state)
    # To the latents, and the density there with its gradient.
    assert number.numpy() == 2
    tf.function(kernel.one_step)(state, results, seed=(0, 1))
    # And back from the latents, at the end.
    assert number.numpy() - 2 == num_leapfrog_steps + 1


def test_the_density_in_latent_space():
    distribution = _distribution(dtype=tf.float64)
    kernel = tfp.mcmc.TransformedTransitionKernel(
        tfp.mcmc.HamiltonianMonteCarlo(distribution.log_prob, 0.1, 1), distribution.bijector
    )
    z = ft.normal([5, 3], tf.float64)
    results = kernel.bootstrap_results(distribution.bijector.forward(z)).inner_results
    np.testing.assert_allclose(
        results.accepted_results.target_log_prob, distribution.distribution.log_prob(z)
    )
    np.testing.assert_allclose(results.accepted_results.grads_target_log_prob[0], -z, atol=1e-9)
