"""Compares Hamiltonian Monte Carlo in the latent space of a flow (NeuTra) with plain HMC.

    python examples/neutra.py                     # a banana
    python examples/neutra.py --target=funnel

Variational inference fits a flow to the target density. NeuTra passes the flow as bijector to a
`tfp.mcmc.TransformedTransitionKernel`, so chains sample a density close to a standard normal. Both
methods start from samples of the flow, adapt their step sizes in the same way, and use the same
numbers of leapfrog steps.

Hoffman, Sountsov, Dillon, Langmore, Tran, Vasudevan: NeuTra-lizing bad geometry in Hamiltonian
Monte Carlo using neural transport, 2019.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from absl import app, flags, logging

import tfp_realnvp as tfr

flags.DEFINE_enum("target", "banana", ["banana", "funnel"], "Density.")
flags.DEFINE_integer("num_couplings", 6, "Couplings of the flow.", lower_bound=1)
flags.DEFINE_integer("num_filters", 32, "Units of the networks' layers.", lower_bound=1)
flags.DEFINE_integer("num_steps", 2000, "Steps of the optimizer.", lower_bound=1)
flags.DEFINE_integer("sample_size", 128, "Samples in a step.", lower_bound=1)
flags.DEFINE_float("learning_rate", 5e-3, "Learning rate at the start.", lower_bound=0)
flags.DEFINE_list("num_leapfrog_steps", "1,2,4,8,16,32", "Numbers of leapfrog steps to try.")
flags.DEFINE_integer("num_chains", 64, "Chains.", lower_bound=2)
flags.DEFINE_integer("num_adaptation_steps", 500, "Draws that adapt the step size.", lower_bound=1)
flags.DEFINE_integer("num_draws", 1000, "Draws of each chain.", lower_bound=4)
flags.DEFINE_bool("xla", True, "Compile the chains with XLA.")
flags.DEFINE_integer("seed", 0, "Seed of weights and samples.")

FLAGS = flags.FLAGS

tfb = tfp.bijectors
tfd = tfp.distributions


class Run(NamedTuple):
    """Results of one method with one number of leapfrog steps."""

    num_leapfrog_steps: int
    draws: np.ndarray  # [draws, chains, size]
    step_size: float
    acceptance: float
    seconds: float
    effective_size: float  # the smallest over all means and mean squares
    scale_reduction: float

    @property
    def size_per_gradient(self) -> float:
        """The effective sample size per gradient evaluation of the density."""
        draws, chains, _ = self.draws.shape
        return self.effective_size / (draws * chains * self.num_leapfrog_steps)


def main(argv: list[str]) -> None:
    del argv
    # Hides a warning about complex numbers from the computation of effective sample sizes.
    logging.set_verbosity(logging.ERROR)
    keras.utils.set_random_seed(FLAGS.seed)
    density = banana() if FLAGS.target == "banana" else funnel()
    surrogate = make_surrogate(density)
    learning_rate = keras.optimizers.schedules.CosineDecay(FLAGS.learning_rate, FLAGS.num_steps)
    start = time.perf_counter()
    losses = tfp.vi.fit_surrogate_posterior(
        density.unnormalized_log_prob,
        surrogate,
        keras.optimizers.Adam(learning_rate, global_clipnorm=100.0),
        FLAGS.num_steps,
        sample_size=FLAGS.sample_size,
        seed=(FLAGS.seed, 0),
    )
    print(
        f"flow: evidence lower bound {-np.mean(losses[-100:]):.3f} nats, "
        f"{FLAGS.num_steps * FLAGS.sample_size:,} gradients, {time.perf_counter() - start:.0f} s"
    )
    target_log_prob, flow = flat_target(density, surrogate)
    starts = flow.forward(surrogate.distribution.sample(FLAGS.num_chains, seed=(FLAGS.seed, 1)))
    best = {}
    for name, bijector in (("HMC", None), ("NeuTra", flow)):
        print(f"\n{name:<8}{'step size':>12}{'accepted':>10}{'R-hat':>8}{'ESS':>10}", end="")
        print(f"{'ESS/gradient':>14}{'ESS/s':>10}")
        sample = make_sampler(target_log_prob, bijector, starts)
        sample(tf.constant(1))  # compiles it
        runs = []
        for number in map(int, FLAGS.num_leapfrog_steps):
            runs.append(run_chains(sample, number))
            print_run(runs[-1])
        best[name] = max(runs, key=lambda run: run.size_per_gradient)
    print()
    for name, run in best.items():
        print(f"{name}: best with {run.num_leapfrog_steps} leapfrog steps")
        print_moments(run.draws)
    ratio = best["NeuTra"].size_per_gradient / best["HMC"].size_per_gradient
    print(f"NeuTra: {ratio:.1f} times the effective sample size per gradient of HMC")


# The densities: joint distributions.


def banana() -> Any:
    """Returns a density in the shape of a banana (Haario et al. 1999)."""

    def model() -> Generator:
        x1 = yield tfd.Normal(0.0, 10.0, name="x1")
        yield tfd.Normal(0.03 * (x1**2 - 100.0), 1.0, name="x2")

    return tfd.JointDistributionCoroutineAutoBatched(model)


def funnel(size: int = 10) -> Any:
    """Returns Neal's funnel (2003): `size - 1` normals with a common log variance."""

    def model() -> Generator:
        log_variance = yield tfd.Normal(0.0, 3.0, name="log_variance")
        yield tfd.Sample(tfd.Normal(0.0, tf.exp(0.5 * log_variance)), size - 1, name="x")

    return tfd.JointDistributionCoroutineAutoBatched(model)


# The flow.


def make_surrogate(density: Any) -> tfd.TransformedDistribution:
    """Returns an untrained flow over the variables of a density.

    The last bijector in the `tfb.Chain` is the flow of vectors. The others split a vector into
    variables, and map the variables to the support of the density.
    """
    support = density.experimental_default_event_space_bijector()
    parts = support.inverse_event_shape(density.event_shape)
    size = sum(part.num_elements() for part in tf.nest.flatten(parts))

    def smooth_network(
        *, output_channels: int, num_filters: int, name: str, dtype: str, **_: Any
    ) -> tfr.DenseResNet:
        # Hamiltonian Monte Carlo mixes badly with ReLU, whose gradient has jumps.
        return tfr.DenseResNet(
            output_channels, 1, num_filters, activation="elu", name=name, dtype=dtype
        )

    flow = tfr.RealNVPVector(
        size, FLAGS.num_couplings, num_filters=FLAGS.num_filters, network_fn=smooth_network
    )
    return tfp.experimental.vi.build_split_flow_surrogate_posterior(
        density.event_shape, trainable_bijector=flow, constraining_bijector=support
    )


def flat_target(
    density: Any, surrogate: tfd.TransformedDistribution
) -> tuple[Callable[[tf.Tensor], tf.Tensor], tfb.Bijector]:
    """Returns the log density of unconstrained vectors, and the flow that fits it.

    Both methods sample unconstrained vectors. A vector contains all variables of the density, each
    mapped to the real line.
    """
    *to_parts, flow = surrogate.bijector.bijectors
    to_parts = tfb.Chain(to_parts)

    def target_log_prob(vector: tf.Tensor) -> tf.Tensor:
        log_det = to_parts.forward_log_det_jacobian(vector, event_ndims=1)
        return density.unnormalized_log_prob(to_parts.forward(vector)) + log_det

    return target_log_prob, flow


# Markov chains.


def make_kernel(
    target_log_prob: Callable[[tf.Tensor], tf.Tensor],
    bijector: tfb.Bijector | None,
    num_leapfrog_steps: Any,
    num_adaptation_steps: int,
) -> tfp.mcmc.TransitionKernel:
    """Returns HMC with an adapted step size, in latent space if there is a bijector."""
    kernel = tfp.mcmc.DualAveragingStepSizeAdaptation(
        tfp.mcmc.HamiltonianMonteCarlo(
            target_log_prob, step_size=0.1, num_leapfrog_steps=num_leapfrog_steps
        ),
        num_adaptation_steps,
        target_accept_prob=0.75,
        # If step sizes adapt to the arithmetic mean of acceptance rates, some chains get stuck.
        reduce_fn=tfp.math.reduce_log_harmonic_mean_exp,
    )
    return kernel if bijector is None else tfp.mcmc.TransformedTransitionKernel(kernel, bijector)


def make_sampler(
    target_log_prob: Callable[[tf.Tensor], tf.Tensor],
    bijector: tfb.Bijector | None,
    starts: tf.Tensor,
) -> Callable[[tf.Tensor], tuple[tf.Tensor, Any]]:
    """Returns a function from the number of leapfrog steps to draws, step size and acceptance."""

    # One graph serves all numbers of leapfrog steps.
    @tf.function(autograph=False, jit_compile=FLAGS.xla)
    def sample(num_leapfrog_steps: tf.Tensor) -> tuple[tf.Tensor, Any]:
        return tfp.mcmc.sample_chain(
            FLAGS.num_draws,
            starts,
            kernel=make_kernel(
                target_log_prob, bijector, num_leapfrog_steps, FLAGS.num_adaptation_steps
            ),
            num_burnin_steps=FLAGS.num_adaptation_steps,
            trace_fn=trace,
            seed=(FLAGS.seed, 2),
        )

    return sample


def trace(state: tf.Tensor, results: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the step size and the acceptance rate."""
    del state
    # In latent space, the transformed kernel's results contain the results of the adaptive kernel.
    results = results.inner_results if hasattr(results, "transformed_state") else results
    accepted = tf.cast(results.inner_results.is_accepted, tf.float32)
    return results.new_step_size, tf.reduce_mean(accepted)


def run_chains(sample: Callable[[tf.Tensor], tuple], num_leapfrog_steps: int) -> Run:
    """Runs chains and measures how well they mix."""
    number = tf.constant(num_leapfrog_steps)
    start = time.perf_counter()
    draws, (step_sizes, acceptance) = sample(number)
    draws = draws.numpy()
    seconds = time.perf_counter() - start
    # A chain may mix well in means and badly in mean squares, or vice versa.
    values = np.concatenate([draws, draws**2], axis=-1).astype(np.float64)
    sizes = tfp.mcmc.effective_sample_size(
        values, filter_beyond_positive_pairs=True, cross_chain_dims=1
    )
    reduction = tfp.mcmc.potential_scale_reduction(values, split_chains=True)
    return Run(
        num_leapfrog_steps,
        draws,
        float(step_sizes[-1]),
        float(tf.reduce_mean(acceptance)),
        seconds,
        float(np.min(sizes)),
        float(np.max(reduction)),
    )


def print_run(run: Run) -> None:
    print(
        f"L = {run.num_leapfrog_steps:<4}{run.step_size:>12.3f}{run.acceptance:>10.2f}"
        f"{run.scale_reduction:>8.3f}{run.effective_size:>10,.0f}{run.size_per_gradient:>14.4f}"
        f"{run.effective_size / run.seconds:>10,.0f}"
    )


def print_moments(draws: np.ndarray) -> None:
    """Prints the mean and standard deviation of each element of the vectors."""
    mean, stddev = draws.mean(axis=(0, 1)), draws.std(axis=(0, 1))
    moments = [f"{m:.2f} ± {s:.2f}" for m, s in zip(mean, stddev, strict=True)]
    print("  mean ± standard deviation:", ", ".join(moments))


if __name__ == "__main__":
    app.run(main)
