"""Learns the posterior of a simulator's parameters given any data, and checks its calibration.

    python examples/simulation_based_inference.py
    python examples/simulation_based_inference.py --simulator=two_moons

The script trains a flow of parameters on simulations, with the data as condition. If the posterior
is right, the ranks of the true parameters among samples of their posterior are uniform. The script
checks this, and shows that a posterior that is too narrow fails the check.

Talts, Betancourt, Simpson, Vehtari, Gelman: Validating Bayesian inference algorithms with
simulation-based calibration, 2018.
"""

from __future__ import annotations

import time

import keras
import numpy as np
import scipy.stats
import tensorflow_probability as tfp
from absl import app, flags

import tfp_realnvp as tfr

flags.DEFINE_enum("simulator", "gaussian", ["gaussian", "two_moons"], "Simulator.")
flags.DEFINE_integer("num_simulations", 100_000, "Simulations to train on.", lower_bound=1)
flags.DEFINE_integer("epochs", 6, "Passes over the simulations.", lower_bound=1)
flags.DEFINE_integer("batch_size", 256, "Simulations in a batch.", lower_bound=1)
flags.DEFINE_float("learning_rate", 3e-3, "Learning rate at the start.", lower_bound=0)
flags.DEFINE_integer("num_couplings", 6, "Couplings of the flow.", lower_bound=1)
flags.DEFINE_integer("num_filters", 32, "Units of the networks' layers.", lower_bound=1)
flags.DEFINE_integer("num_checks", 2000, "Simulations to check calibration with.", lower_bound=1)
flags.DEFINE_integer("num_samples", 99, "Samples of each posterior, for the ranks.", lower_bound=1)
flags.DEFINE_integer("num_bins", 20, "Bins of the ranks.", lower_bound=2)
flags.DEFINE_list("temperatures", "1,0.8", "Standard deviations of the latents to check.")
flags.DEFINE_string("plot", None, "PNG file for the histograms of ranks.")
flags.DEFINE_integer("seed", 0, "Seed of simulations, weights and samples.")

FLAGS = flags.FLAGS

tfb = tfp.bijectors
tfd = tfp.distributions


class Gaussian:
    """Linear measurements x = A θ + noise with θ ~ N(0, I) and a known posterior.

    The measurements determine one direction of θ well, and the other directions hardly at all.
    """

    matrix = np.array([[1.0, 0.8, 0.0], [1.0, 0.9, 0.1], [0.5, 0.5, 0.5], [0.0, 0.3, -0.3]])
    noise = np.array([0.3, 0.5, 1.0, 1.0])
    support = None

    def simulate(self, number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Returns parameters, [number, 3], and their data, [number, 4]."""
        theta = rng.normal(size=[number, 3])
        return theta, rng.normal(theta @ self.matrix.T, self.noise)

    def posterior(self, x: np.ndarray) -> tfd.Distribution:
        """Returns the exact posterior given each row of `x`."""
        scaled = self.matrix / self.noise[:, np.newaxis] ** 2
        covariance = np.linalg.inv(np.eye(3) + self.matrix.T @ scaled)
        scale = np.linalg.cholesky(covariance)
        return tfd.MultivariateNormalTriL(*as_float32((x @ scaled @ covariance, scale)))


class TwoMoons:
    """A noisy arc, moved by θ ~ U(-1, 1)² so that two values of θ have the same likelihood.

    Greenberg, Nonnenmacher, Macke: Automatic posterior transformation for likelihood-free
    inference, 2019, appendix A.5.2.
    """

    # Maps the plane to (-1, 1)², the support of the parameters.
    support = tfb.Sigmoid(-1.0, 1.0)

    def simulate(self, number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Returns parameters, [number, 2], and their data, [number, 2]."""
        theta = rng.uniform(-1, 1, size=[number, 2])
        angle = rng.uniform(-np.pi / 2, np.pi / 2, size=number)
        radius = rng.normal(0.1, 0.01, size=number)
        arc = np.stack([radius * np.cos(angle) + 0.25, radius * np.sin(angle)], axis=-1)
        shift = np.stack([-np.abs(theta.sum(axis=-1)), theta[:, 1] - theta[:, 0]], axis=-1)
        return theta, arc + shift / np.sqrt(2)


def main(argv: list[str]) -> None:
    del argv
    keras.utils.set_random_seed(FLAGS.seed)
    simulator = {"gaussian": Gaussian, "two_moons": TwoMoons}[FLAGS.simulator]()
    rng = np.random.default_rng(FLAGS.seed)
    start = time.perf_counter()
    flow = train(simulator, *as_float32(simulator.simulate(FLAGS.num_simulations, rng)))
    print(f"{time.perf_counter() - start:.0f} s")

    theta, x = as_float32(simulator.simulate(FLAGS.num_checks, rng))
    if isinstance(simulator, Gaussian):
        print_errors(flow, simulator, theta, x)
    histograms = {}
    for temperature in map(float, FLAGS.temperatures):
        # The temperature is the standard deviation of the latents.
        base = tfd.Sample(tfd.Normal(0.0, temperature), flow.event_shape)
        posterior = tfr.condition(tfd.TransformedDistribution(base, flow.bijector), x)
        histograms[temperature] = rank_histograms(posterior, theta)
        tests = [
            f"{name} {scipy.stats.chisquare(counts).pvalue:.2g}"
            for name, counts in histograms[temperature].items()
        ]
        print(f"temperature {temperature}: p-values of uniform ranks: {', '.join(tests)}")
    if FLAGS.plot:
        plot(histograms)


def as_float32(arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    return tuple(array.astype(np.float32) for array in arrays)


def train(simulator: Gaussian | TwoMoons, theta: np.ndarray, x: np.ndarray) -> tfd.Distribution:
    """Returns a trained flow of the parameters, with the data as condition."""
    size = theta.shape[-1]
    flow = tfr.RealNVPVector(
        size,
        num_couplings=FLAGS.num_couplings,
        num_blocks=1,
        num_filters=FLAGS.num_filters,
        activation="relu",
        conditional_event_shape=x.shape[1:],
    )
    bijector = flow if simulator.support is None else tfb.Chain([simulator.support, flow])
    base = tfd.Sample(tfd.Normal(0.0, 1.0), [size])
    model = tfr.FlowModel(tfd.TransformedDistribution(base, bijector))
    num_steps = FLAGS.epochs * -(-len(theta) // FLAGS.batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(FLAGS.learning_rate, num_steps)
    model.compile(tfr.FusedAdam(schedule, global_clipnorm=100.0))
    model.fit(theta, x, batch_size=FLAGS.batch_size, epochs=FLAGS.epochs, verbose=2)
    return model.distribution


def print_errors(
    flow: tfd.Distribution, simulator: Gaussian, theta: np.ndarray, x: np.ndarray
) -> None:
    """Prints the KL divergence from the exact posterior, and errors of the first two moments."""
    exact = simulator.posterior(x)
    differences = exact.log_prob(theta) - tfr.condition(flow, x).log_prob(theta)
    error = np.std(differences) / np.sqrt(len(x))
    print(f"KL divergence from the exact posterior: {np.mean(differences):.4f} ± {error:.4f} nats")
    x = x[:200]
    exact = simulator.posterior(x)
    samples = tfr.condition(flow, x).sample(2000, seed=(FLAGS.seed, 1)).numpy()
    shifts = np.abs(samples.mean(axis=0) - exact.mean()) / exact.stddev()
    ratios = samples.std(axis=0) / exact.stddev()
    low, high = np.quantile(ratios, [0.05, 0.95])
    print(
        f"means: off by {np.mean(shifts):.3f} exact standard deviations on average; standard "
        f"deviations: {low:.3f} to {high:.3f} of the exact ones (90%)"
    )


def rank_histograms(posterior: tfd.Distribution, theta: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the counts of ranks in each bin, for each parameter and for the log density.

    Args:
      posterior: the posterior given the data of each row of `theta`.
      theta: the true parameters, [number, size].
    """
    samples, log_prob = posterior.experimental_sample_and_log_prob(
        FLAGS.num_samples, seed=(FLAGS.seed, 2)
    )
    ranks = np.sum(samples.numpy() < theta, axis=0)
    of_log_prob = np.sum(log_prob.numpy() < posterior.log_prob(theta), axis=0)
    ranks = {f"θ{i + 1}": each for i, each in enumerate(ranks.T)} | {"log density": of_log_prob}
    num_ranks = FLAGS.num_samples + 1
    if num_ranks % FLAGS.num_bins:
        raise ValueError(f"Expected --num_bins that divides {num_ranks}, got {FLAGS.num_bins}.")
    edges = np.linspace(0, num_ranks, FLAGS.num_bins + 1) - 0.5
    return {name: np.histogram(each, edges)[0] for name, each in ranks.items()}


def plot(histograms: dict[float, dict[str, np.ndarray]]) -> None:
    """Writes the histograms of ranks to a PNG file, a row for each temperature."""
    from matplotlib import pyplot

    rows, columns = len(histograms), len(next(iter(histograms.values())))
    figure, axes = pyplot.subplots(
        rows, columns, squeeze=False, sharex=True, sharey="row", figsize=(2.2 * columns, 1.8 * rows)
    )
    # If ranks are uniform, 99% of the counts are in this band.
    band = scipy.stats.binom(FLAGS.num_checks, 1 / FLAGS.num_bins).ppf([0.005, 0.995])
    for row, (temperature, counts_by_name) in zip(axes, histograms.items(), strict=True):
        row[0].set_ylabel(f"temperature {temperature}")
        for axis, (name, counts) in zip(row, counts_by_name.items(), strict=True):
            axis.bar(np.arange(len(counts)), counts, width=1.0, color="tab:blue")
            axis.axhspan(*band, color="gray", alpha=0.4)
            axis.set_title(f"rank of {name}", fontsize=9)
            axis.set_xticks([])
    figure.tight_layout()
    figure.savefig(FLAGS.plot, dpi=100)
    pyplot.close(figure)


if __name__ == "__main__":
    app.run(main)
