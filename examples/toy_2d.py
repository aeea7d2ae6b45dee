"""Trains Real NVP on points in the plane and draws the flow, as in figure 1 of the paper.

    python examples/toy_2d.py                           # two moons
    python examples/toy_2d.py --dataset=checkerboard --num_bins=8 --num_blocks=2 --num_filters=64

The script prints the mean of -log p of held-out points, in nats, for the flow and for a kernel
density estimate p. If the density of the points is known (checkerboard, ring, banana), the script
also prints the KL divergence from this density. The script writes `flow.jpg`, `toy.png` and
`report.json` to the output folder.
"""

from __future__ import annotations

import functools
import json
import math
import os
import pathlib
from collections.abc import Callable, Sequence

# TensorFlow uses oneDNN by default only on processors with AVX-512 VNNI or AVX-VNNI instructions.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from absl import app, flags, logging
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn import datasets
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity

import tfp_realnvp as tfr

_SAMPLED = ("moons", "circles", "pinwheel", "spirals")
_KNOWN = ("checkerboard", "ring", "banana")  # toys of known density

flags.DEFINE_enum("dataset", "moons", [*_SAMPLED, *_KNOWN], "The toy.")
flags.DEFINE_enum(
    "transformer", "spline", ["affine", "spline"], "What couplings do to a coordinate."
)
flags.DEFINE_integer("num_bins", 4, "Bins of a spline.", lower_bound=2)
flags.DEFINE_integer("num_couplings", 6, "Number of couplings.", lower_bound=1)
flags.DEFINE_integer("num_blocks", 1, "Residual blocks of each network.", lower_bound=0)
flags.DEFINE_integer("num_filters", 32, "Units of the dense layers.", lower_bound=1)
flags.DEFINE_integer("num_points", 10_000, "Points to train on, and as many held out.")
flags.DEFINE_integer("num_steps", 4_000, "Steps of training.", lower_bound=1)
flags.DEFINE_integer("batch_size", 256, "Points in a batch.", lower_bound=1)
flags.DEFINE_float("learning_rate", 2e-3, "Peak learning rate.")
flags.DEFINE_bool("kde", True, "Fit a kernel density estimate too.")
flags.DEFINE_integer("seed", 0, "Seed of weights, points and their order.")
flags.DEFINE_string("output_dir", None, "Output folder; default: results/toy_<dataset>.")

FLAGS = flags.FLAGS

tfb = tfp.bijectors
tfd = tfp.distributions

_STEPS_PER_LINE = 500
_BANDWIDTHS = np.geomspace(0.02, 0.5, 12)
_NUM_DRAWN = 3_000  # points in the figure


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    keras.utils.set_random_seed(FLAGS.seed)
    train, held_out = (
        sample(FLAGS.dataset, FLAGS.num_points, 2 * FLAGS.seed + i) for i in range(2)
    )
    flow = make_flow(train)
    fit(flow, train)
    log_probs = {"Real NVP": log_prob(flow, held_out)}
    if FLAGS.kde:
        estimate = fit_kde(train)
        log_probs[f"KDE, bandwidth {estimate.bandwidth:.3f}"] = estimate.score_samples(held_out)
    nats = {name: _mean(-values) for name, values in log_probs.items()}
    report = {"dataset": FLAGS.dataset, "num_points": FLAGS.num_points, "held_out_nats": nats}
    if FLAGS.dataset in _KNOWN:
        target = known_density(FLAGS.dataset).log_prob(held_out).numpy()
        kl = {name: _mean(target - values) for name, values in log_probs.items()}
        report["kl_from_known_density"] = kl
    for quantity in ("held_out_nats", "kl_from_known_density"):
        for name, (mean, error) in report.get(quantity, {}).items():
            print(f"{quantity.replace('_', ' ')}, {name}: {mean:.4f} ± {error:.4f}")
    output_dir = pathlib.Path(FLAGS.output_dir or f"results/toy_{FLAGS.dataset}")
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "report.json").write_text(json.dumps(report, indent=2))
    draw(flow, held_out).savefig(output_dir / "toy.png")
    draw_densities(flow).savefig(output_dir / "flow.jpg", pil_kwargs={"quality": 90})
    print(f"figures are in {output_dir}")


# The toy data.


def sample(name: str, number: int, seed: int) -> np.ndarray:
    """Samples points of a dataset, float32 [number, 2]."""
    if name in _KNOWN:
        return known_density(name).sample(number, seed=(seed, 0)).numpy()
    rng = np.random.RandomState(seed)
    if name == "moons":
        points, _ = datasets.make_moons(number, noise=0.1, random_state=rng)
    elif name == "circles":
        points, _ = datasets.make_circles(number, noise=0.06, factor=0.5, random_state=rng)
    elif name == "pinwheel":
        # Normal distributions along five arms. Points farther out on an arm are rotated further.
        along, across = rng.normal(1.0, 0.3, number), rng.normal(0.0, 0.1, number)
        angle = 2 * math.pi / 5 * rng.randint(5, size=number) + 0.25 * np.exp(along)
        cos, sin = np.cos(angle), np.sin(angle)
        points = 2 * np.stack([along * cos - across * sin, along * sin + across * cos], axis=1)
    else:  # spirals
        turn = 3 * math.pi * np.sqrt(rng.uniform(size=number))
        arm = np.stack([-np.cos(turn), np.sin(turn)], axis=1) * turn[:, np.newaxis] / 3
        sign = rng.choice([-1.0, 1.0], size=[number, 1])
        points = sign * arm + rng.normal(0.0, 0.1, [number, 2])
    return points.astype(np.float32)


def known_density(name: str) -> tfd.Distribution:
    """Returns the distribution of a dataset whose density is known."""
    if name == "checkerboard":
        # Uniform on the eight black squares of a board of 4×4 unit squares.
        corners = [[i - 2.0, j - 2.0] for i in range(4) for j in range(4) if (i + j) % 2 == 0]
        low = tf.constant(corners)
        parts = tfd.Independent(tfd.Uniform(low, low + 1.0), 1)
    elif name == "ring":
        # Eight normal distributions on a circle.
        angle = tf.range(8.0) * (2 * math.pi / 8)
        centers = 2 * tf.stack([tf.cos(angle), tf.sin(angle)], axis=-1)
        parts = tfd.MultivariateNormalDiag(centers, tf.fill([8, 2], 0.2))
    else:  # banana: x₁ ~ N(0, 1), x₂ ~ N(x₁² - 1, 0.3²)
        normal = tfd.MultivariateNormalDiag(tf.zeros(2), tf.constant([1.0, 0.3]))
        bend = tfb.RealNVP(1, shift_and_log_scale_fn=lambda x, _: (x**2 - 1, None))
        return tfd.TransformedDistribution(normal, bend)
    return tfd.MixtureSameFamily(tfd.Categorical(logits=tf.zeros(8)), parts)


# The flow.


def make_flow(train: np.ndarray) -> tfd.Distribution:
    """Returns an untrained flow that maps a standard normal distribution to the points."""
    transformer = "affine"
    if FLAGS.transformer == "spline":
        transformer = functools.partial(tfr.RationalQuadraticSpline, FLAGS.num_bins, bound=4.0)
    bijector = tfr.RealNVPVector(
        2,
        FLAGS.num_couplings,
        FLAGS.num_blocks,
        FLAGS.num_filters,
        activation="swish",  # without the kinks of ReLU
        transformer=transformer,
        standardization=tfr.Standardization.of(train),
    )
    base = tfd.Sample(tfd.Normal(0.0, 1.0), [2])
    return tfd.TransformedDistribution(base, bijector)


def fit(flow: tfd.Distribution, train: np.ndarray) -> None:
    """Trains the flow, and prints the training loss from time to time."""
    model = tfr.FlowModel(flow, seed=FLAGS.seed)
    model.compile(tfr.FusedAdam(FLAGS.learning_rate, global_clipnorm=10.0))
    print(f"{model.count_params():,} parameters")
    batches = tf.data.Dataset.from_tensor_slices(train)
    batches = batches.shuffle(len(train), seed=FLAGS.seed).repeat().batch(FLAGS.batch_size)
    budget = tfr.LearningRateBudget(FLAGS.learning_rate, steps=FLAGS.num_steps)
    model.fit(
        batches,
        steps_per_epoch=_STEPS_PER_LINE,
        epochs=-(-FLAGS.num_steps // _STEPS_PER_LINE),
        callbacks=[budget],
        verbose=2,
    )


def log_prob(flow: tfd.Distribution, points: np.ndarray) -> np.ndarray:
    """Returns log densities, float64."""
    return np.asarray(flow.log_prob(points), np.float64)


def fit_kde(train: np.ndarray) -> KernelDensity:
    """Returns the kernel density estimate with the bandwidth that cross-validation chooses."""
    search = GridSearchCV(KernelDensity(rtol=1e-3), {"bandwidth": _BANDWIDTHS}, cv=3)
    return search.fit(train).best_estimator_


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Returns the mean and its standard error."""
    return float(np.mean(values)), float(np.std(values) / np.sqrt(len(values)))


# The figures.


def draw_densities(flow: tfd.Distribution) -> Figure:
    """Returns a figure of the densities of z and x, both with lines of constant z₁ or z₂."""
    lines = _grid()
    curves = flow.bijector.forward(lines).numpy()
    width, height = np.ptp(curves, axis=(0, 1))
    figure = Figure(figsize=(3.4 + 2.6 * width / height, 2.6), dpi=110, facecolor="black")
    panels = figure.subplots(1, 2, width_ratios=[1, width / height])
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.99, wspace=0.25)
    _draw_density(panels[0], flow.distribution, lambda z: z, lines)
    _draw_density(panels[1], flow, flow.bijector.inverse, curves)
    center = {"ha": "center", "va": "center"}
    position = 3.0 / figure.get_figwidth()
    figure.text(position, 0.5, "$f$\n$\\longrightarrow$", color="white", size=20, **center)
    return figure


def _draw_density(
    axes: Axes,
    distribution: tfd.Distribution,
    latents_of: Callable[[np.ndarray], np.ndarray],
    curves: np.ndarray,
) -> None:
    """Draws a density as brightness, the angle of the latents as hue, and curves."""
    low, high = curves.min(axis=(0, 1)) - 0.1, curves.max(axis=(0, 1)) + 0.1
    x = np.stack(np.meshgrid(*np.linspace(low, high, 300).T), axis=-1).astype(np.float32)
    density = np.exp(log_prob(distribution, x))
    z = np.asarray(latents_of(x))
    hue = np.arctan2(z[..., 1], z[..., 0]) / (2 * np.pi) % 1
    brightness = np.sqrt(np.minimum(1, density / np.quantile(density, 0.99)))
    pixels = colors.hsv_to_rgb(np.stack([hue, np.full_like(hue, 0.9), brightness], axis=-1))
    box = (low[0], high[0], low[1], high[1])
    axes.imshow(pixels, origin="lower", extent=box, interpolation="bilinear")
    for line in curves:
        axes.plot(*line.T, color="white", linewidth=0.6, alpha=0.5)
    axes.axis("off")


def draw(flow: tfd.Distribution, points: np.ndarray) -> Figure:
    """Returns a figure with data space in the upper row, and latent space in the lower row."""
    forward, inverse = flow.bijector.forward, flow.bijector.inverse
    center = (points.max(axis=0) + points.min(axis=0)) / 2
    extent = 1.05 * np.abs(points - center).max()
    shown = points[:_NUM_DRAWN]
    latents = np.random.default_rng(FLAGS.seed).normal(size=shown.shape).astype(np.float32)
    figure = Figure(figsize=(10.4, 5.6), dpi=80, layout="constrained")
    axes = figure.subplots(2, 4)
    _scatter(axes[:, 0], shown, inverse(shown).numpy(), shown - center)
    _scatter(axes[:, 1], forward(latents).numpy(), latents, latents)
    lines = _grid()
    for each, curves in zip(axes[:, 2], (forward(lines).numpy(), lines), strict=True):
        for x, y in curves.transpose(0, 2, 1):
            each.plot(x, y, color="tab:blue", linewidth=0.6)
    _draw_densities(axes[:, 3], flow, points, center, extent)
    titles = [
        ["data x", "samples x = f(z)", "the grid of z in x", "density of the flow"],
        ["z of the data", "z from the base", "grid of z", "histogram of the data"],
    ]
    if FLAGS.dataset in _KNOWN:
        titles[1][3] = "known density"
    for each, title in zip(axes.ravel(), np.ravel(titles), strict=True):
        each.set(aspect="equal", xticks=[], yticks=[], title=title)
    for each in (*axes[0], axes[1, 3]):
        each.set_xlim(center[0] - extent, center[0] + extent)
        each.set_ylim(center[1] - extent, center[1] + extent)
    for each in axes[1, :3]:
        each.set(xlim=(-3.8, 3.8), ylim=(-3.8, 3.8))
    return figure


def _scatter(
    axes: Sequence[Axes], above: np.ndarray, below: np.ndarray, positions: np.ndarray
) -> None:
    """Draws the same points in both spaces, with the angle of `positions` as color."""
    colors = np.arctan2(positions[:, 1], positions[:, 0])
    for each, points in zip(axes, (above, below), strict=True):
        each.scatter(*points.T, c=colors, cmap="hsv", s=2.0, linewidths=0)


def _grid() -> np.ndarray:
    """Returns the lines of a grid, float32 [number, points, 2]."""
    at, along = np.meshgrid(np.linspace(-3, 3, 17), np.linspace(-3, 3, 1_000), indexing="ij")
    lines = [np.stack(pair, axis=-1) for pair in ((at, along), (along, at))]
    return np.concatenate(lines).astype(np.float32)


def _draw_densities(
    axes: Sequence[Axes],
    flow: tfd.Distribution,
    points: np.ndarray,
    center: np.ndarray,
    extent: float,
) -> None:
    """Draws the density of the flow, and below it the known density or a histogram."""
    edges = center[:, np.newaxis] + np.linspace(-extent, extent, 151)
    middles = ((edges[:, 1:] + edges[:, :-1]) / 2).astype(np.float32)
    grid = np.stack(np.meshgrid(*middles, indexing="ij"), axis=-1)
    density = np.exp(log_prob(flow, grid.reshape(-1, 2))).reshape(grid.shape[:-1])
    if FLAGS.dataset in _KNOWN:
        below = known_density(FLAGS.dataset).prob(grid).numpy()
    else:
        below, _, _ = np.histogram2d(*points.T, bins=edges[:, ::2], density=True)
    # Limits the color scale: a few very large values would make all others invisible.
    for each, values in zip(axes, (density, below), strict=True):
        box = (*edges[0, [0, -1]], *edges[1, [0, -1]])
        each.imshow(values.T, origin="lower", extent=box, vmax=np.quantile(density, 0.995))


if __name__ == "__main__":
    app.run(main)
