"""Detects images unlike the training data, with several scores from log densities.

    python examples/outliers.py

Outliers are changed digits (inverted, rotated, …), and simplified photographs (blurred, …). The log
density alone does not detect simplified photographs. The script prints the area under the ROC curve
of each score: the probability that an outlier scores higher than an image like the training data,
0.5 for random scores. It also prints the fractions of images with conformal p-values of at most
`--alpha`: false alarms among new digits, and detections among outliers.

The models are the presets `digits` and `photos`. The test images had no part in training or in the
choice of weights. Some test images calibrate the p-values; the rest are the new images.
"""

from __future__ import annotations

import io
import pathlib
from collections.abc import Mapping

import keras
import matplotlib.figure
import numpy as np
import tensorflow_probability as tfp
from absl import app, flags
from PIL import Image
from scipy import ndimage

import tfp_realnvp as tfr
from tfp_realnvp import data, outliers, plots

flags.DEFINE_string("output_dir", "results/outliers", "Folder of the figures.")
flags.DEFINE_float("alpha", 0.05, "Largest p-value to report.", lower_bound=0, upper_bound=1)
flags.DEFINE_integer("num_models", 3, "Models of the committee.", lower_bound=2)
flags.DEFINE_integer("num_couplings", 4, "Couplings of each model.", lower_bound=1)
flags.DEFINE_integer("epochs", 10, "Epochs of each model.", lower_bound=1)
flags.DEFINE_integer("group_size", 10, "Photographs that are judged together.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Seed of outliers, committee and bootstrap.")

FLAGS = flags.FLAGS

_NUM_HELD_OUT = 139  # for α = 5%, α (n + 1) is the integer 7, so the false alarm rate equals α
_NUM_BOOTSTRAP = 1000
_NUM_SPLITS = 1000
_NUM_COLUMNS = 6

tfd = tfp.distributions

# Maps names of scores to the scores of images.
Scores = Mapping[str, np.ndarray]


def main(argv: list[str]) -> None:
    del argv
    digits, photos = data.load_arrays("digits"), data.load_arrays("photos")
    compare_on_digits(digits, photos)
    compare_on_photos(photos)


def compare_on_digits(digits: data.ImageArrays, photos: data.ImageArrays) -> None:
    """Compares the scores on digits; outliers are changed digits and other images."""
    rng = np.random.default_rng(FLAGS.seed)
    model = tfr.FlowModel.from_preset("digits")
    models = [train_member(digits, seed) for seed in range(FLAGS.num_models)]
    reference = tfr.log_prob(model, digits.train)

    def score(images: np.ndarray) -> Scores:
        log_probs = tfr.log_prob(model, images)
        return {
            "-log p": -log_probs,
            "typicality": outliers.typicality(log_probs, reference),
            "complexity": outliers.complexity_corrected(log_probs, images),
            "committee": outliers.committee([tfr.log_prob(member, images) for member in models]),
        }

    new = digits.test[_NUM_HELD_OUT:]
    constant = np.zeros_like(new) + rng.integers(0, digits.num_values, [len(new), 1, 1, 1])
    sets = {
        "inverted": digits.num_values - 1 - new,
        "rotated": np.rot90(new, axes=(1, 2)),
        "shuffled": shuffle_patches(new, 4, rng),
        "blurred": blur(new),
        "constant": constant,
        "photographs": gray_patches(photos.test, new.shape, digits.num_values, rng),
    }
    sets = {name: images.astype(np.uint8) for name, images in sets.items()}
    scores = score(digits.test)
    set_scores = {name: score(images) for name, images in sets.items()}
    print(f"Digits: area under the ROC curve, {len(new)} new digits against as many outliers")
    new_scores = {name: values[_NUM_HELD_OUT:] for name, values in scores.items()}
    print_table(new_scores, set_scores)
    print_false_alarms(scores, set_scores, rng)
    blank = score(np.zeros_like(new[:1]))
    p_values = [
        f"{name} {outliers.p_values(blank[name], values[:_NUM_HELD_OUT])[0]:.3f}"
        for name, values in scores.items()
    ]
    print("p-values of a blank image:", ", ".join(p_values))
    print(f"{(scores['-log p'] > blank['-log p']).mean():.0%} of digits have a lower density.")
    draw("digits.png", sets, new_scores, set_scores, digits.num_values)


def compare_on_photos(photos: data.ImageArrays) -> None:
    """Shows that the log density fails on outliers that are simpler than the data."""
    model = tfr.FlowModel.from_preset("photos")
    # The first half of the groups is the reference, and the second half is new.
    num_groups = len(photos.test) // (2 * FLAGS.group_size)
    count = num_groups * FLAGS.group_size
    new = photos.test[count : 2 * count]
    reference = tfr.log_prob(model, photos.test[:count])

    def score(images: np.ndarray) -> Scores:
        log_probs = tfr.log_prob(model, images)
        return {
            "-log p": -log_probs,
            "typicality": outliers.typicality(log_probs, reference),
            f"groups of {FLAGS.group_size}": outliers.typicality(
                log_probs, reference, FLAGS.group_size
            ),
            "complexity": outliers.complexity_corrected(log_probs, images),
            "complexity by WebP": outliers.complexity_corrected(log_probs, images, webp),
        }

    mean = new.mean(axis=(1, 2), keepdims=True)
    sets = {
        "blurred": blur(new),
        "half contrast": np.rint((new + mean) / 2),
        "without color": np.rint(new.mean(axis=-1, keepdims=True)) + np.zeros(3),
        "constant": np.rint(mean) + np.zeros_like(new),
    }
    sets = {name: images.astype(np.uint8) for name, images in sets.items()}
    print(f"Photographs: area under the ROC curve, {len(new)} new ones, as many outliers")
    scores, set_scores = score(new), {name: score(images) for name, images in sets.items()}
    print_table(scores, set_scores)
    draw("photos.png", sets, scores, set_scores, photos.num_values)


def train_member(digits: data.ImageArrays, seed: int) -> tfr.FlowModel:
    """Returns a small model of digits. The models of a committee differ in their seeds."""
    keras.utils.set_random_seed(FLAGS.seed + seed)
    bijector = tfr.RealNVPImage.compact(
        digits.image_shape,
        num_values=digits.num_values,
        num_scales=1,
        num_couplings=FLAGS.num_couplings,
        num_filters=32,
    )
    base = tfd.Sample(tfd.Normal(0.0, 1.0), digits.image_shape)
    model = tfr.FlowModel(tfd.TransformedDistribution(base, bijector))
    model.compile(keras.optimizers.Adam(4e-3))
    model.fit(digits.train, epochs=FLAGS.epochs, batch_size=64, verbose=0)
    return model


def webp(image: np.ndarray) -> bytes:
    """Returns an image as lossless WebP, which compresses photographs better than PNG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "webp", lossless=True, quality=100)
    return file.getvalue()


# The outliers.


def blur(images: np.ndarray) -> np.ndarray:
    """Returns the mean of each pixel and its eight neighbors, rounded."""
    blurred = ndimage.uniform_filter(images.astype(np.float64), (0, 3, 3, 0), mode="nearest")
    return np.rint(blurred)


def shuffle_patches(images: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Returns images with permuted patches of `size`×`size` pixels.

    All patches of an image move by the same number of places in row-major order, so no patch keeps
    its place.
    """
    count, height, width, channels = images.shape
    grid = (count, height // size, size, width // size, size, channels)
    patches = images.reshape(grid).swapaxes(2, 3).reshape(count, -1, size, size, channels)
    num_patches = patches.shape[1]
    order = (np.arange(num_patches) + rng.integers(1, num_patches, [count, 1])) % num_patches
    patches = patches[np.arange(count)[:, np.newaxis], order]
    grid = (count, height // size, width // size, size, size, channels)
    return patches.reshape(grid).swapaxes(2, 3).reshape(images.shape)


def gray_patches(
    photographs: np.ndarray, shape: tuple[int, ...], num_values: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns random gray patches of a shape [N, H, W, 1], with levels 0 to num_values - 1."""
    count, height, width, _ = shape
    gray = photographs.mean(axis=-1, keepdims=True)
    top = rng.integers(0, gray.shape[1] - height + 1, count)
    left = rng.integers(0, gray.shape[2] - width + 1, count)
    chosen = rng.integers(0, len(gray), count)
    patches = [
        gray[i, y : y + height, x : x + width] for i, y, x in zip(chosen, top, left, strict=True)
    ]
    return np.floor(np.stack(patches) / 256 * num_values)


# The comparison.


def area_under_curve(scores: np.ndarray, outlier_scores: np.ndarray) -> tuple[float, float, float]:
    """Returns P(outlier > image) + P(equal) / 2, with the ends of its 95% bootstrap interval.

    Most outliers are made from the images, so the bootstrap draws pairs of an image and its
    outlier.
    """
    outlier_scores = outlier_scores[:, np.newaxis]
    wins = (outlier_scores > scores) + 0.5 * (outlier_scores == scores)
    count = len(scores)
    rng = np.random.default_rng(FLAGS.seed)
    weights = rng.multinomial(count, np.full(count, 1 / count), _NUM_BOOTSTRAP) / count
    draws = ((weights @ wins) * weights).sum(axis=1)
    return (wins.mean(), *np.quantile(draws, [0.025, 0.975]))


def print_table(scores: Scores, set_scores: Mapping[str, Scores]) -> None:
    print_row("", list(scores))
    for name, outlier_scores in set_scores.items():
        areas = [area_under_curve(scores[score], outlier_scores[score]) for score in scores]
        print_row(name, [f"{area:.3f} ({low:.3f}–{high:.3f})" for area, low, high in areas])


def print_false_alarms(
    scores: Scores, set_scores: Mapping[str, Scores], rng: np.random.Generator
) -> None:
    """Prints the fractions of new digits and of outliers with p-values of at most alpha.

    The guarantee holds for the mean over splits of the test images into held-out and new images.
    The script prints this mean with the standard deviation of a single split.
    """
    count = len(scores["-log p"])
    orders = [rng.permutation(count) for _ in range(_NUM_SPLITS)]

    def rate(new: np.ndarray, held_out: np.ndarray) -> float:
        return (outliers.p_values(new, held_out) <= FLAGS.alpha).mean()

    columns: dict[str, list[str]] = {
        "false alarms": [],
        "over all splits": [],
        "outliers found": [],
    }
    for name, values in scores.items():
        held_out, new = np.split(values, [_NUM_HELD_OUT])
        found = np.concatenate([outlier_scores[name] for outlier_scores in set_scores.values()])
        rates = [rate(*np.split(values[order], [_NUM_HELD_OUT])[::-1]) for order in orders]
        columns["false alarms"].append(f"{rate(new, held_out):.1%}")
        columns["over all splits"].append(f"{np.mean(rates):.1%} ± {np.std(rates):.1%}")
        columns["outliers found"].append(f"{rate(found, held_out):.1%}")
    print(f"Reported with p-values of at most {FLAGS.alpha}")
    for name, cells in columns.items():
        print_row(name, cells)


def print_row(name: str, cells: list[str]) -> None:
    print(f"{name:<16}" + "".join(f"{cell:>21}" for cell in cells))


def draw(
    name: str,
    sets: Mapping[str, np.ndarray],
    scores: Scores,
    set_scores: Mapping[str, Scores],
    num_values: int,
) -> None:
    """Draws images of each set of outliers, and histograms of two of the scores."""
    figure = matplotlib.figure.Figure(figsize=(9, 0.8 * len(sets) + 0.6), layout="constrained")
    axes = figure.subplots(len(sets), 3, width_ratios=[2, 1, 1], squeeze=False)
    for (set_name, images), row in zip(sets.items(), axes, strict=True):
        chosen = images[np.linspace(0, len(images) - 1, _NUM_COLUMNS).astype(int)]
        plots.draw_grid(chosen, columns=_NUM_COLUMNS, num_values=num_values, ax=row[0])
        row[0].set_ylabel(set_name, rotation=0, ha="right", va="center")
        for axis, score in zip(row[1:], ("-log p", "complexity"), strict=True):
            usual, unusual = scores[score], set_scores[set_name][score]
            bins = np.linspace(*np.quantile([usual, unusual], [0.01, 0.99]), 30)
            axis.hist(usual, bins, color="0.7", label="like the training data")
            axis.hist(unusual, bins, histtype="step", color="C3", label="outliers")
        for axis in row:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    for axis, score in zip(axes[0, 1:], ("-log p", "complexity"), strict=True):
        axis.set_title(f"{score} →", fontsize="medium")
    figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside lower right", ncols=2)
    path = pathlib.Path(FLAGS.output_dir) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    print(f"{path}\n")


if __name__ == "__main__":
    app.run(main)
