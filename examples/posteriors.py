"""Posteriors of joint distributions, and a flow fitted to them by variational inference.

Used by variational_inference.py and neutra.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr

tfb = tfp.bijectors
tfd = tfp.distributions

_TREATMENT_EFFECTS = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
_TREATMENT_STDDEVS = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]


@dataclasses.dataclass(frozen=True)
class Posterior:
    """An unnormalized density, as a joint distribution given the values of some of its parts.

    Attributes:
      joint: the joint distribution, of a batch of one event.
      data: values of the observed parts, by name. Without any, the density is `joint` itself.
      log_evidence: the exact log of the integral of the density, `None` if it is not known.
    """

    joint: tfd.JointDistribution
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    log_evidence: float | None = None

    @property
    def target(self) -> Any:
        """The density, with an `unnormalized_log_prob` of the parts that are not observed."""
        return self.joint.experimental_pin(**self.data) if self.data else self.joint


def conjugate(num_rows: int = 30, num_columns: int = 6, noise: float = 0.5) -> Posterior:
    """Returns a Bayesian linear regression with known noise, and its exact evidence.

    ```
    weights ~ N(0, I),   y ~ N(X weights, noise² I),   so that   y ~ N(0, noise² I + X Xᵀ)
    ```
    """
    rng = np.random.default_rng(0)
    # Correlated columns: the posterior is far from independent.
    x = rng.normal(size=[num_rows, num_columns]) @ rng.normal(size=[num_columns, num_columns])
    y = x @ rng.normal(size=num_columns) + noise * rng.normal(size=num_rows)

    def model() -> Generator:
        weights = yield tfd.Sample(tfd.Normal(0.0, 1.0), num_columns, name="weights")
        mean = tf.linalg.matvec(tf.constant(x, tf.float32), weights)
        yield tfd.Independent(tfd.Normal(mean, noise), 1, name="y")

    covariance = noise**2 * np.eye(num_rows) + x @ x.T
    marginal = tfd.MultivariateNormalTriL(np.zeros(num_rows), np.linalg.cholesky(covariance))
    return Posterior(
        tfd.JointDistributionCoroutineAutoBatched(model),
        {"y": tf.constant(y, tf.float32)},
        float(marginal.log_prob(y)),
    )


def eight_schools() -> Posterior:
    """Returns the effects of coaching in eight schools (Gelman et al., section 5.5).

    The effects are `mean + stddev * standardized`. The standard deviation is positive.
    """

    def model() -> Generator:
        mean = yield tfd.Normal(0.0, 5.0, name="mean")
        stddev = yield tfd.HalfCauchy(0.0, 5.0, name="stddev")
        standardized = yield tfd.Sample(tfd.Normal(0.0, 1.0), 8, name="standardized")
        effects = mean + stddev * standardized
        yield tfd.Independent(tfd.Normal(effects, _TREATMENT_STDDEVS), 1, name="y")

    joint = tfd.JointDistributionCoroutineAutoBatched(model)
    return Posterior(joint, {"y": tf.constant(_TREATMENT_EFFECTS)})


def banana() -> Posterior:
    """Returns a density in the shape of a banana (Haario et al. 1999), normalized."""

    def model() -> Generator:
        x1 = yield tfd.Normal(0.0, 10.0, name="x1")
        yield tfd.Normal(0.03 * (x1**2 - 100.0), 1.0, name="x2")

    return Posterior(tfd.JointDistributionCoroutineAutoBatched(model), log_evidence=0.0)


def funnel(size: int = 10) -> Posterior:
    """Returns Neal's funnel (2003), normalized: `size - 1` normals of a common log variance."""

    def model() -> Generator:
        log_variance = yield tfd.Normal(0.0, 3.0, name="log_variance")
        yield tfd.Sample(tfd.Normal(0.0, tf.exp(0.5 * log_variance)), size - 1, name="x")

    return Posterior(tfd.JointDistributionCoroutineAutoBatched(model), log_evidence=0.0)


MODELS = {
    "conjugate": conjugate,
    "eight_schools": eight_schools,
    "banana": banana,
    "funnel": funnel,
}


def flow_posterior(
    posterior: Posterior, num_couplings: int, num_filters: int
) -> tfd.TransformedDistribution:
    """Returns a flow over the parts that are not observed, untrained.

    Its bijector is a `tfb.Chain`. The last one is the flow, of vectors; those before split a vector
    into parts, and map them to the support of the density.

    Args:
      posterior: the density.
      num_couplings: of the flow.
      num_filters: units of the networks' layers.
    """
    target = posterior.target
    support = target.experimental_default_event_space_bijector()
    parts = support.inverse_event_shape(target.event_shape)
    size = sum(part.num_elements() for part in tf.nest.flatten(parts))
    flow = tfr.RealNVPVector(
        size, num_couplings, num_filters=num_filters, network_fn=_smooth_network
    )
    return tfp.experimental.vi.build_split_flow_surrogate_posterior(
        target.event_shape, trainable_bijector=flow, constraining_bijector=support
    )


def _smooth_network(
    *, output_channels: int, num_filters: int, name: str, dtype: str, **_: Any
) -> tfr.DenseResNet:
    # ReLU has a gradient with jumps, which Hamiltonian Monte Carlo does not follow well.
    return tfr.DenseResNet(
        output_channels, 1, num_filters, activation="elu", name=name, dtype=dtype
    )


def fit(
    posterior: Posterior,
    surrogate: tfd.Distribution,
    optimizer: Any,
    *,
    num_steps: int,
    sample_size: int,
    seed: int = 0,
) -> np.ndarray:
    """Fits a surrogate posterior by maximizing the evidence lower bound; returns minus the bounds.

    Args:
      posterior: the density.
      surrogate: the distribution to fit, with reparameterized samples.
      optimizer: of Keras 3, of tf-keras, or any with `apply_gradients`.
      num_steps: number of steps.
      sample_size: samples in each step.
      seed: of the samples.
    """
    losses = tfp.vi.fit_surrogate_posterior(
        posterior.target.unnormalized_log_prob,
        surrogate,
        optimizer,
        num_steps,
        sample_size=sample_size,
        seed=(seed, 0),
    )
    return losses.numpy()


def make_optimizer(
    learning_rate: float, num_steps: int, name: str = "keras3"
) -> keras.optimizers.Optimizer | Any:
    """Returns Adam with a cosine decay, of Keras 3 or of tf-keras."""
    if name == "tf_keras":
        import tf_keras

        module = tf_keras.optimizers
    else:
        module = keras.optimizers
    schedule = module.schedules.CosineDecay(learning_rate, num_steps)
    return module.Adam(schedule, global_clipnorm=100.0)
