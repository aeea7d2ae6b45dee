"""Draws figures of the latent space of a trained model, as in the paper's experiments.

    python examples/latent_space.py --results_dir=results/digits

| file | figure |
| --- | --- |
| `reconstructions.png` | images, and their latents decoded |
| `manifold.png` | manifold of four images (equation 19) |
| `interpolation.png` | interpolation between pairs of images |
| `levels_redraw.png`, `levels_zero.png` | levels of representation (Appendix D) |
| `extrapolation_2x.png`, `extrapolation_4x.png` | larger samples; not for image conditions |
| `temperatures.png` | samples by temperature and truncation |
| `condition_swap.png` | images, decoded under other conditions (Appendix F) |
| `latents.md` | moments of the latents of each scale |

For models with a condition, `interpolation.png` and `condition_swap.png` vary the condition. The
other figures use the conditions of the images.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import datasets
import numpy as np
import tensorflow_probability as tfp
from absl import app, flags

import tfp_realnvp as tfr
from tfp_realnvp import latents, plots
from tfp_realnvp.distributions.routing import find_condition_spec

flags.DEFINE_string("results_dir", None, "Results folder of a training run.", required=True)
flags.DEFINE_string("weights", None, "Weights file; default: the best weights of the run.")
flags.DEFINE_string("dataset", None, "Dataset, as in datasets.py; default: the dataset of the run.")
flags.DEFINE_string("split", "evaluation", "Split; `evaluation`: as in the paper.")
flags.DEFINE_string("output_dir", None, "Output folder; default: the results folder.")
flags.DEFINE_integer("seed", 0, "Seed of the samples and of the choice of images.")
flags.DEFINE_string("data_dir", None, "Data directory of TensorFlow Datasets.")
flags.DEFINE_bool("download", False, "Download missing data.")

FLAGS = flags.FLAGS

_NUM_IMAGES = 256  # for the moments
_NUM_COLUMNS = 8
_MAX_CLASSES = 10
_ANGLES = ("0", "π/4", "π/2", "3π/4", "π", "5π/4", "3π/2", "7π/4")

tfd = tfp.distributions


def main(argv: list[str]) -> None:
    del argv
    results_dir = pathlib.Path(FLAGS.results_dir).absolute()
    # In float32 the inverse is exact, even if the networks were trained in bfloat16.
    model = tfr.FlowModel.from_preset(results_dir, network_dtype="float32")
    if FLAGS.weights:
        model.load_weights(FLAGS.weights)
    flow, has_clusters = model.distribution, isinstance(model.distribution, tfr.ClusterMixture)
    settings = json.loads((results_dir / "metadata.json").read_text())["card"]["data"]
    examples = load_examples({**settings, "name": FLAGS.dataset or settings["name"]})
    if has_clusters:
        # Encode each image under its nearest cluster.
        clusters = flow.clusters.nearest(examples.images + 0.5, examples.conditions)
        examples, flow = Examples(examples.images, clusters.numpy()), flow.components_distribution
    figures = Figures(pathlib.Path(FLAGS.output_dir or results_dir), flow.bijector.num_values)
    chosen = examples.take(range(min(_NUM_COLUMNS, len(examples.images))))
    four = examples.take(range(4))
    draw_reconstructions(figures, flow, chosen)
    draw_manifold(figures, flow, four)
    draw_interpolation(figures, flow, examples)
    draw_levels(figures, flow, chosen)
    if np.ndim(examples.conditions) != 4:  # Condition images of a larger size do not exist.
        draw_extrapolation(figures, flow, four)
    draw_temperatures(figures, flow, chosen)
    if chosen.conditions is not None and not has_clusters:
        draw_condition_swap(figures, flow, chosen)
    write_statistics(figures.folder, flow, examples)
    print(f"figures are in {figures.folder}")


class Examples(NamedTuple):
    """Images [N, H, W, C] and their conditions [N, ...], or `None`."""

    images: np.ndarray
    conditions: np.ndarray | None

    def take(self, indices: Sequence[int]) -> Examples:
        """Returns the images and conditions at the indices."""
        return Examples(*(None if each is None else each[np.asarray(indices)] for each in self))


class Figures:
    """Writes figures to a folder."""

    def __init__(self, folder: pathlib.Path, num_values: int) -> None:
        self.folder = folder
        self.num_values = num_values

    def save(self, name: str, images: np.ndarray, title: str, **labels: list[str]) -> None:
        """Saves a grid of continuous pixel values [rows, columns, H, W, C]."""
        plots.save_labelled_grid(
            self.folder / name,
            tfr.to_uint8(images, self.num_values),
            title,
            num_values=self.num_values,
            **labels,
        )


def load_examples(settings: dict) -> Examples:
    """Returns the first images of the split in random order."""
    images = datasets.load(**settings, data_dir=FLAGS.data_dir, download=FLAGS.download)
    split = images.evaluation_split if FLAGS.split == "evaluation" else FLAGS.split
    batch = next(images.batches(split, _NUM_IMAGES).as_numpy_iterator())
    levels, conditions = batch if isinstance(batch, tuple) else (batch, None)
    if len(levels) < 4:
        raise ValueError(
            f"Expected at least 4 images in split {split!r} of {images.name!r}, got {len(levels)}."
        )
    order = np.random.default_rng(FLAGS.seed).permutation(len(levels))
    return Examples(levels, conditions).take(order)


def draw_reconstructions(figures: Figures, flow: tfd.Distribution, examples: Examples) -> None:
    images, conditions = examples
    decoded, error = latents.reconstruct(flow, images, conditional_input=conditions)
    figures.save(
        "reconstructions.png",
        np.stack([images + 0.5, decoded]),
        f"Reconstructions, largest error {error:.2g} gray levels",
        row_labels=["image", "decoded"],
    )


def draw_manifold(figures: Figures, flow: tfd.Distribution, examples: Examples) -> None:
    images, conditions = examples
    figures.save(
        "manifold.png",
        latents.manifold(flow, images, len(_ANGLES), conditional_input=conditions),
        "Manifold of four images at the angles 0 and π/2",
        row_labels=[f"φ = {angle}" for angle in _ANGLES],
        column_labels=[f"φ′ = {angle}" for angle in _ANGLES],
    )


def draw_interpolation(figures: Figures, flow: tfd.Distribution, examples: Examples) -> None:
    pairs = min(6, len(examples.images) // 2)
    first, second = (examples.take(range(i, i + pairs)) for i in (0, pairs))
    figures.save(
        "interpolation.png",
        latents.interpolate(
            flow,
            first.images,
            second.images,
            _NUM_COLUMNS,
            conditional_input=first.conditions,
            second_conditional_input=second.conditions,
        ),
        "Spherical interpolation between the images at both ends",
        column_labels=[f"{i}/{_NUM_COLUMNS - 1}" for i in range(_NUM_COLUMNS)],
    )


def draw_levels(figures: Figures, flow: tfd.Distribution, examples: Examples) -> None:
    images, conditions = examples
    kept = [2.0**-k for k in reversed(range(flow.bijector.num_scales))]
    for mode, replacement in (("redraw", "sampled"), ("zero", "zero")):
        levels = latents.levels_of_representation(
            flow, images, mode=mode, seed=FLAGS.seed, conditional_input=conditions
        )
        figures.save(
            f"levels_{mode}.png",
            np.concatenate([images[:, np.newaxis] + 0.5, levels], axis=1),
            f"Coarsest latents kept, others {replacement}",
            column_labels=["image", *(f"{100 * fraction:.3g} %" for fraction in kept)],
        )


def draw_extrapolation(figures: Figures, flow: tfd.Distribution, four: Examples) -> None:
    height, width, channels = flow.bijector.image_shape
    for factor in (2, 4):
        size = (factor * height, factor * width, channels)
        samples = latents.extrapolate(
            flow, size, 4, seed=FLAGS.seed, conditional_input=four.conditions
        )
        figures.save(
            f"extrapolation_{factor}x.png",
            samples.reshape(2, 2, *size),
            f"Samples of {size[0]}×{size[1]} pixels, trained at {height}×{width}",
        )


def draw_temperatures(figures: Figures, flow: tfd.Distribution, examples: Examples) -> None:
    columns = len(examples.images)
    settings = [(each, None) for each in (0.0, 0.5, 0.7, 0.85, 1.0)] + [(1.0, 2.0), (1.0, 1.0)]
    rows = [
        latents.sample_latents(
            flow.bijector.image_shape,
            columns,
            seed=FLAGS.seed,
            temperature=temperature,
            truncation=truncation,
            dtype=flow.dtype,
        )
        for temperature, truncation in settings
    ]
    figures.save(
        "temperatures.png",
        latents.decode(flow, np.stack(rows), conditional_input=examples.conditions),
        "Samples by temperature T, or with latents truncated to |z| ≤ t",
        row_labels=[f"T = {each}" if to is None else f"t = {to}" for each, to in settings],
    )


def draw_condition_swap(figures: Figures, flow: tfd.Distribution, examples: Examples) -> None:
    """Decodes each image under all classes or, without classes, under all images' conditions."""
    images, conditions = examples
    spec = find_condition_spec(flow)
    targets, title = conditions, "Images under the conditions of all images"
    labels = [f"of image {i}" for i in range(1, 1 + len(images))]
    if spec.num_classes is not None:
        targets = np.arange(min(spec.num_classes, _MAX_CLASSES))
        labels, title = [f"as {each}" for each in targets], "Images as other classes"
    swapped = latents.swap_condition(
        flow, images[:, np.newaxis], conditions[:, np.newaxis], targets
    )
    rows = np.concatenate([images[:, np.newaxis] + 0.5, swapped], axis=1)
    if spec.event_ndims == 3:
        # The top row shows the condition of each column. Above the images it is white.
        top = np.full([1, *rows.shape[1:]], figures.num_values - 0.5)
        top[0, 1:] = targets * (figures.num_values - 1) + 0.5
        rows = np.concatenate([top, rows])
    figures.save("condition_swap.png", rows, title, column_labels=["image", *labels])


def write_statistics(folder: pathlib.Path, flow: tfd.Distribution, examples: Examples) -> None:
    images, conditions = examples
    scales = latents.latent_statistics(flow, images, conditional_input=conditions)
    lines = [
        "| scale | latents | mean | standard deviation | skewness | excess kurtosis | largest |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for number, scale in enumerate(scales, start=1):
        moments = (scale.mean, scale.std, scale.skewness, scale.excess_kurtosis, scale.largest)
        shape = "×".join(map(str, scale.shape))
        lines.append(f"| {number} | {shape} | " + " | ".join(f"{m:.3f}" for m in moments) + " |")
    table = "\n".join(lines)
    print(table)
    (folder / "latents.md").write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
