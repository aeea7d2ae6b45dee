"""Fits a flow to the posterior of a joint distribution with `tfp.vi.fit_surrogate_posterior`.

    python examples/variational_inference.py --model=conjugate      # a linear regression
    python examples/variational_inference.py --model=eight_schools --check
    python examples/variational_inference.py --optimizer=tf_keras

The script prints the evidence lower bound, the evidence by importance weighting with its standard
error, and the posterior mean and standard deviation of each variable of the joint distribution.
`--check` compares these moments with Hamiltonian Monte Carlo.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Generator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from absl import app, flags, logging

import tfp_realnvp as tfr

flags.DEFINE_enum("model", "eight_schools", ["conjugate", "eight_schools"], "Joint distribution.")
flags.DEFINE_enum("optimizer", "keras3", ["keras3", "tf_keras"], "Library of the optimizer.")
flags.DEFINE_integer("num_couplings", 6, "Couplings of the flow.", lower_bound=1)
flags.DEFINE_integer("num_filters", 32, "Units of the networks' layers.", lower_bound=1)
flags.DEFINE_integer("num_steps", 2000, "Steps of the optimizer.", lower_bound=1)
flags.DEFINE_integer("sample_size", 128, "Samples in a step.", lower_bound=1)
flags.DEFINE_float("learning_rate", 5e-3, "Learning rate at the start.", lower_bound=0)
flags.DEFINE_integer("num_samples", 100_000, "Samples of the evidence.", lower_bound=2)
flags.DEFINE_bool("check", False, "Compare with Hamiltonian Monte Carlo.")
flags.DEFINE_integer("num_draws", 2000, "Draws of each of 64 chains with --check.", lower_bound=2)
flags.DEFINE_integer("seed", 0, "Seed of weights and samples.")

FLAGS = flags.FLAGS

tfd = tfp.distributions

_TREATMENT_EFFECTS = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
_TREATMENT_STDDEVS = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]


def main(argv: list[str]) -> None:
    del argv
    # Hides a warning about complex numbers from the computation of effective sample sizes.
    logging.set_verbosity(logging.ERROR)
    keras.utils.set_random_seed(FLAGS.seed)
    posterior = conjugate() if FLAGS.model == "conjugate" else eight_schools()
    surrogate = flow_posterior(posterior, FLAGS.num_couplings, FLAGS.num_filters)
    start = time.perf_counter()
    losses = tfp.vi.fit_surrogate_posterior(
        posterior.target.unnormalized_log_prob,
        surrogate,
        make_optimizer(),
        FLAGS.num_steps,
        sample_size=FLAGS.sample_size,
        seed=(FLAGS.seed, 0),
    ).numpy()
    for step in np.linspace(0, FLAGS.num_steps, 6).astype(int)[1:]:
        bound = -np.mean(losses[max(step - 100, 0) : step])
        print(f"step {step}: evidence lower bound {bound:.3f} nats")
    print(f"{time.perf_counter() - start:.0f} s")

    samples, log_weights = weighted_samples(posterior, surrogate, FLAGS.num_samples, FLAGS.seed)
    print_evidence(log_weights, posterior.log_evidence)
    moments = {
        "flow": moments_of(samples),
        "weighted": moments_of(samples, log_weights),
    }
    if FLAGS.check:
        draws = hamiltonian_monte_carlo(posterior, FLAGS.num_draws, FLAGS.seed)
        moments["HMC"] = moments_of(draws)
    print_moments(moments)


# The posteriors.


@dataclasses.dataclass(frozen=True)
class Posterior:
    """An unnormalized density: a joint distribution given the values of some of its variables.

    Attributes:
      joint: the joint distribution, with the batch shape [].
      data: values of the observed variables, by name.
      log_evidence: the exact log of the integral of the density, if known.
    """

    joint: tfd.JointDistribution
    data: dict[str, Any]
    log_evidence: float | None = None

    @property
    def target(self) -> Any:
        """The density of the unobserved variables, with a method `unnormalized_log_prob`."""
        return self.joint.experimental_pin(**self.data)


def conjugate(num_rows: int = 30, num_columns: int = 6, noise: float = 0.5) -> Posterior:
    """Returns a Bayesian linear regression with known noise, and its exact evidence.

    ```
    weights ~ N(0, I),   y ~ N(X weights, noise² I),   so that   y ~ N(0, noise² I + X Xᵀ)
    ```
    """
    rng = np.random.default_rng(0)
    # Correlated columns make the posterior strongly dependent.
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


# The flow.


def flow_posterior(
    posterior: Posterior, num_couplings: int, num_filters: int
) -> tfd.TransformedDistribution:
    """Returns an untrained flow over the unobserved variables.

    The last bijector in the `tfb.Chain` is the flow of vectors. The others split a vector into
    variables, and map the variables to the support of the density.

    Args:
      posterior: the density.
      num_couplings: number of couplings of the flow.
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
    # Hamiltonian Monte Carlo mixes badly with ReLU, whose gradient has jumps.
    return tfr.DenseResNet(
        output_channels, 1, num_filters, activation="elu", name=name, dtype=dtype
    )


def make_optimizer() -> Any:
    """Returns Adam with a cosine decay, of Keras 3 or of tf-keras."""
    if FLAGS.optimizer == "tf_keras":
        import tf_keras

        module = tf_keras.optimizers
    else:
        module = keras.optimizers
    schedule = module.schedules.CosineDecay(FLAGS.learning_rate, FLAGS.num_steps)
    return module.Adam(schedule, global_clipnorm=100.0)


# Results.


def weighted_samples(
    posterior: Posterior, surrogate: tfd.Distribution, number: int, seed: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns samples of the surrogate posterior by variable, and their log importance weights."""

    @tf.function(autograph=False)
    def sample() -> tuple[tuple[tf.Tensor, ...], tf.Tensor]:
        parts, log_prob = surrogate.experimental_sample_and_log_prob(number, seed=(seed, 1))
        return parts, posterior.target.unnormalized_log_prob(parts) - log_prob

    parts, log_weights = sample()
    return columns(posterior, parts), log_weights.numpy().astype(np.float64)


def hamiltonian_monte_carlo(
    posterior: Posterior, num_draws: int, seed: int
) -> dict[str, np.ndarray]:
    """Returns the draws of 64 chains by variable; prints how well the chains mix."""

    @tf.function(autograph=False)
    def sample() -> tuple[tf.Tensor, ...]:
        return tfp.experimental.mcmc.windowed_adaptive_hmc(
            num_draws,
            posterior.joint,
            num_leapfrog_steps=10,
            n_chains=64,
            num_adaptation_steps=max(100, num_draws // 4),
            trace_fn=None,
            seed=(seed, 2),
            **posterior.data,
        )

    start = time.perf_counter()
    parts = sample()
    seconds = time.perf_counter() - start
    sizes = [
        tf.reduce_min(tfp.mcmc.effective_sample_size(part, cross_chain_dims=1)) for part in parts
    ]
    reductions = [tf.reduce_max(tfp.mcmc.potential_scale_reduction(part)) for part in parts]
    print(
        f"HMC: 64 chains of {num_draws} draws in {seconds:.0f} s, effective sample size at least "
        f"{min(map(float, sizes)):.0f}, R-hat at most {max(map(float, reductions)):.4f}"
    )
    return columns(posterior, parts)


def columns(posterior: Posterior, parts: Any) -> dict[str, np.ndarray]:
    """Returns samples [number, size] by variable; effects of schools replace standardized ones."""
    shapes = posterior.target.event_shape._asdict()
    values = {
        name: np.reshape(part, [-1, shapes[name].num_elements()]).astype(np.float64)
        for name, part in parts._asdict().items()
    }
    if "standardized" in values:
        values["effects"] = values["mean"] + values["stddev"] * values.pop("standardized")
    return values


def print_evidence(log_weights: np.ndarray, exact: float | None) -> None:
    """Prints both estimates of the evidence, and the effective sample size of the weights."""
    number = len(log_weights)
    weights = np.exp(log_weights - log_weights.max())
    log_evidence = log_weights.max() + math.log(weights.mean())
    # To first order, the error of the log evidence is the relative error of the mean weight.
    error = weights.std() / weights.mean() / math.sqrt(number)
    bound_error = log_weights.std() / math.sqrt(number)
    print(f"evidence lower bound: {log_weights.mean():.4f} ± {bound_error:.4f} nats")
    print(f"importance-weighted evidence: {log_evidence:.4f} ± {error:.4f} nats")
    if exact is not None:
        print(f"exact evidence: {exact:.4f} nats, error {log_evidence - exact:+.4f} nats")
    share = weights.sum() ** 2 / (weights**2).sum() / number
    print(f"effective sample size of the weights: {share:.1%} of {number:,}")


def moments_of(
    samples: dict[str, np.ndarray], log_weights: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Returns the means and standard deviations, [2, size], by variable."""
    weights = None if log_weights is None else np.exp(log_weights - log_weights.max())
    moments = {}
    for name, values in samples.items():
        mean = np.average(values, axis=0, weights=weights)
        variance = np.average((values - mean) ** 2, axis=0, weights=weights)
        moments[name] = np.stack([mean, np.sqrt(variance)])
    return moments


def print_moments(moments: dict[str, dict[str, np.ndarray]]) -> None:
    """Prints mean ± standard deviation by method, and how far the means are from means of HMC."""
    exact = moments.get("HMC")
    print("".join(f"{name:>20}" for name in ("", *moments)))
    for part, (means, _) in moments["flow"].items():
        for i in range(len(means)):
            values = [
                f"{each[part][0, i]:.2f} ± {each[part][1, i]:.2f}" for each in moments.values()
            ]
            print("".join(f"{value:>20}" for value in (f"{part} {i}", *values)))
    if exact is None:
        return
    for method in ("flow", "weighted"):
        errors = np.concatenate(
            [np.abs(moments[method][part][0] - exact[part][0]) / exact[part][1] for part in exact]
        )
        print(f"{method}: means within {errors.max():.3f} standard deviations of the means of HMC")


if __name__ == "__main__":
    app.run(main)
