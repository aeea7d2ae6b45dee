"""Fits a flow to the posterior of a joint distribution by `tfp.vi.fit_surrogate_posterior`.

    python examples/variational_inference.py --model=conjugate      # a linear regression
    python examples/variational_inference.py --model=eight_schools --check
    python examples/variational_inference.py --model=banana --optimizer=tf_keras

Prints the evidence lower bound, the evidence by importance weighting with its standard error, and
the mean and standard deviation of each part. `--check` compares these with Hamiltonian Monte Carlo.
"""

from __future__ import annotations

import math
import time
from typing import Any

import keras
import numpy as np
import posteriors
import tensorflow as tf
import tensorflow_probability as tfp
from absl import app, flags, logging

flags.DEFINE_enum("model", "eight_schools", list(posteriors.MODELS), "Joint distribution.")
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


def main(argv: list[str]) -> None:
    del argv
    # Effective sample sizes warn of casting complex numbers.
    logging.set_verbosity(logging.ERROR)
    keras.utils.set_random_seed(FLAGS.seed)
    posterior = posteriors.MODELS[FLAGS.model]()
    surrogate = posteriors.flow_posterior(posterior, FLAGS.num_couplings, FLAGS.num_filters)
    optimizer = posteriors.make_optimizer(FLAGS.learning_rate, FLAGS.num_steps, FLAGS.optimizer)
    start = time.perf_counter()
    losses = posteriors.fit(
        posterior,
        surrogate,
        optimizer,
        num_steps=FLAGS.num_steps,
        sample_size=FLAGS.sample_size,
        seed=FLAGS.seed,
    )
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


def weighted_samples(
    posterior: posteriors.Posterior, surrogate: tfd.Distribution, number: int, seed: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns samples of the surrogate posterior as columns, and the logs of their weights."""

    @tf.function(autograph=False)
    def sample() -> tuple[tuple[tf.Tensor, ...], tf.Tensor]:
        parts, log_prob = surrogate.experimental_sample_and_log_prob(number, seed=(seed, 1))
        return parts, posterior.target.unnormalized_log_prob(parts) - log_prob

    parts, log_weights = sample()
    return columns(posterior, parts), log_weights.numpy().astype(np.float64)


def hamiltonian_monte_carlo(
    posterior: posteriors.Posterior, num_draws: int, seed: int
) -> dict[str, np.ndarray]:
    """Returns the draws of 64 chains as columns; prints how well they mix."""

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


def columns(posterior: posteriors.Posterior, parts: Any) -> dict[str, np.ndarray]:
    """Returns samples of each part, [number, size], by name; with the effects of eight schools."""
    shapes = posterior.target.event_shape._asdict()
    values = {
        name: np.reshape(part, [-1, shapes[name].num_elements()]).astype(np.float64)
        for name, part in parts._asdict().items()
    }
    if "standardized" in values:
        values["effects"] = values["mean"] + values["stddev"] * values.pop("standardized")
    return values


def print_evidence(log_weights: np.ndarray, exact: float | None) -> None:
    """Prints the evidence by both estimates, and how even the weights are."""
    number = len(log_weights)
    weights = np.exp(log_weights - log_weights.max())
    log_evidence = log_weights.max() + math.log(weights.mean())
    # To first order, the relative error of the mean weight.
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
    """Returns the means and standard deviations of each part, [2, size], by name."""
    weights = None if log_weights is None else np.exp(log_weights - log_weights.max())
    moments = {}
    for name, values in samples.items():
        mean = np.average(values, axis=0, weights=weights)
        variance = np.average((values - mean) ** 2, axis=0, weights=weights)
        moments[name] = np.stack([mean, np.sqrt(variance)])
    return moments


def print_moments(moments: dict[str, dict[str, np.ndarray]]) -> None:
    """Prints mean ± standard deviation by each method, and how far the means are from HMC's."""
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
        print(f"{method}: means within {errors.max():.3f} standard deviations of those of HMC")


if __name__ == "__main__":
    app.run(main)
