"""Completes images and table rows: samples the missing values given the known values.

    python examples/complete.py

The script trains a flow of digits and a flow of scikit-learn's table of wines. By annealed
sequential Monte Carlo, `tfr.latents.complete` then samples the lower halves of test digits, and
random cells of the table.
The script prints squared errors of the posterior mean and of simpler predictions, and the fraction
of true values in the 90% intervals.

The flow of digits is a flow of vectors, because completion evaluates it tens of thousands of times
for each digit: its dense networks are many times faster than the convolutions of the preset
`digits`.
"""

from __future__ import annotations

import pathlib

import keras
import matplotlib.figure
import numpy as np
import tensorflow_probability as tfp
from absl import app, flags
from sklearn import datasets

import tfp_realnvp as tfr
from tfp_realnvp import data, latents, plots

flags.DEFINE_string("output_dir", "results/complete", "Folder of the figure.")
flags.DEFINE_integer("num_digits", 200, "Test digits to complete.", lower_bound=8)
flags.DEFINE_integer("num_samples", 800, "Samples of each digit and row.", lower_bound=4)
flags.DEFINE_integer("epochs", 45, "Epochs of the flow of digits.", lower_bound=1)
flags.DEFINE_integer("table_epochs", 8, "Epochs of the flow of the table.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Seed of training, missing cells and samples.")

FLAGS = flags.FLAGS

_NUM_COLUMNS = 16
_NUM_DRAWN = 4  # samples of a digit in the figure
_SHARE_OF_MISSING_CELLS = 0.3
_NUM_NOISY_COPIES = 20  # noisy copies of each row of the table
_NOISE = 0.5  # in standard deviations of a column

tfb = tfp.bijectors
tfd = tfp.distributions


def main(argv: list[str]) -> None:
    del argv
    complete_digits()
    complete_table()


def complete_digits() -> None:
    """Samples the lower halves of test digits given the upper halves."""
    keras.utils.set_random_seed(FLAGS.seed)
    digits = data.load_arrays("digits")
    model = train(flow_of_digits(digits), digits.train, FLAGS.epochs)
    truth = digits.test[: FLAGS.num_digits]
    is_known = np.arange(8)[:, np.newaxis, np.newaxis] < 4  # rows of pixels
    completion = complete(model.distribution, truth, is_known)
    classes = np.stack([digits.train[digits.train_labels == c].mean(axis=0) for c in range(10)])
    guesses = {
        "posterior mean": completion.samples.mean(axis=0),
        "mean of the true class": classes[digits.test_labels[: len(truth)]],
        "nearest training image": nearest(digits.train, truth, is_known),
        "mean image": digits.train.mean(axis=0),
    }
    print(f"Lower halves of {len(truth)} test digits, squared error in gray levels")
    print_report(guesses, completion, truth, ~np.broadcast_to(is_known, truth.shape))
    draw(completion, truth, is_known, digits.num_values)


def complete_table() -> None:
    """Imputes random cells of held-out rows of a table."""
    keras.utils.set_random_seed(FLAGS.seed)
    table = datasets.load_wine().data.astype(np.float32)
    rng = np.random.default_rng(FLAGS.seed)
    rng.shuffle(table)
    train_rows, truth = np.split(table, [len(table) * 2 // 3])
    mean, stddev = train_rows.mean(axis=0), train_rows.std(axis=0)
    train_rows, truth = (train_rows - mean) / stddev, (truth - mean) / stddev
    size = table.shape[1]
    flow = tfd.TransformedDistribution(
        tfd.Sample(tfd.Normal(0.0, 1.0), [size]),
        tfr.RealNVPVector(size, num_couplings=2, num_blocks=2, num_filters=16),
    )
    # Without noise, a flow overfits a hundred rows in a few epochs, and intervals are too narrow.
    noisy = np.repeat(train_rows, _NUM_NOISY_COPIES, axis=0)
    noisy += rng.normal(0, _NOISE, noisy.shape)
    model = train(flow, noisy, FLAGS.table_epochs)
    factor = np.linalg.cholesky(np.cov(train_rows, rowvar=False, dtype=np.float32))
    normal = tfd.MultivariateNormalTriL(train_rows.mean(axis=0), factor)
    is_missing = rng.random(truth.shape) < _SHARE_OF_MISSING_CELLS
    missing = np.where(is_missing, np.nan, truth)
    completion = complete(model.distribution, missing)
    guesses = {
        "posterior mean": completion.samples.mean(axis=0),
        "normal distribution": complete(normal, missing).samples.mean(axis=0),
        "nearest training row": nearest(train_rows, truth, ~is_missing),
        "mean of the column": train_rows.mean(axis=0),
    }
    print(f"{is_missing.sum()} missing cells of {len(truth)} wines, error in standard deviations")
    print_report(guesses, completion, truth, is_missing)


def flow_of_digits(digits: data.ImageArrays) -> tfd.Distribution:
    """Returns a flow of images: a flow of vectors, applied to the logits of all pixels."""
    size = int(np.prod(digits.image_shape))
    bijector = tfb.Chain(
        [
            tfr.PixelLogit(num_values=digits.num_values),
            tfb.Reshape(digits.image_shape, [size]),
            tfr.RealNVPVector(size, num_couplings=4, num_blocks=2, num_filters=32),
        ]
    )
    return tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), [size]), bijector)


def train(flow: tfd.Distribution, events: np.ndarray, epochs: int) -> tfr.FlowModel:
    model = tfr.FlowModel(flow)
    num_steps = epochs * -(-len(events) // 64)
    learning_rate = keras.optimizers.schedules.CosineDecay(3e-3, num_steps)
    # Small networks and weight decay make the density smooth. Fewer temperatures and leapfrog steps
    # then suffice.
    model.compile(keras.optimizers.AdamW(learning_rate, weight_decay=0.03, global_clipnorm=10.0))
    model.fit(events, epochs=epochs, batch_size=64, verbose=0)
    return model


def complete(
    flow: tfd.Distribution, events: np.ndarray, is_known: np.ndarray | None = None
) -> latents.Completion:
    options = {"num_samples": FLAGS.num_samples, "seed": FLAGS.seed}
    return latents.complete(flow, events, is_known, **options)


def nearest(train_events: np.ndarray, events: np.ndarray, is_known: np.ndarray) -> np.ndarray:
    """Returns for each event the training event with the nearest known values."""
    is_known = np.broadcast_to(is_known, events.shape)
    axes = tuple(range(1, events.ndim))
    # The differences of all pairs at once would take much memory.
    indices = [
        np.square(np.where(known, train_events - event.astype(np.float32), 0)).sum(axes).argmin()
        for event, known in zip(events, is_known, strict=True)
    ]
    return train_events[indices]


def print_report(
    guesses: dict[str, np.ndarray],
    completion: latents.Completion,
    truth: np.ndarray,
    is_missing: np.ndarray,
) -> None:
    for name, guess in guesses.items():
        error = np.square(guess - truth.astype(np.float64))[is_missing].mean()
        print(f"  {name:<24}{error:8.3f}")
    low, high = np.quantile(completion.samples, [0.05, 0.95], axis=0)
    held = ((low <= truth) & (truth <= high))[is_missing].mean()
    r_hat = completion.r_hat
    print(f"  90% intervals hold {held:.1%}")
    print(
        f"  R-hat: largest of an event {np.median(r_hat):.3f} (median), {r_hat.max():.3f} "
        f"(maximum); below 1.05 for {(r_hat < 1.05).mean():.1%} of events"
    )
    print(f"  accepted proposals: {completion.acceptance_rate.mean():.0%}\n")


def draw(
    completion: latents.Completion, truth: np.ndarray, is_known: np.ndarray, num_values: int
) -> None:
    """Draws a column per digit: known pixels, samples, posterior mean, and the digit itself."""
    chosen = np.linspace(0, len(truth) - 1, min(_NUM_COLUMNS, len(truth))).astype(int)
    spaced = np.linspace(0, len(completion.samples) - 1, _NUM_DRAWN).astype(int)
    samples = completion.samples[:, chosen]
    rows = {
        "known": np.where(is_known, truth[chosen], (num_values - 1) // 2),
        **{f"sample {i + 1}": row for i, row in enumerate(samples[spaced])},
        "mean": np.rint(samples.mean(axis=0)),
        "digit": truth[chosen],
    }
    images = np.stack(list(rows.values())).astype(np.uint8)
    size = (0.5 * len(chosen) + 1, 0.5 * len(rows))
    figure = matplotlib.figure.Figure(size, layout="constrained")
    plots.draw_grid(images, row_labels=list(rows), num_values=num_values, ax=figure.subplots())
    path = pathlib.Path(FLAGS.output_dir) / "digits.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    print(f"{path}\n")


if __name__ == "__main__":
    app.run(main)
