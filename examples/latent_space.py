"""Draws figures of the latent space of a trained model: the paper's experiments.

    python examples/latent_space.py --results_dir=results/digits

| file | figure |
| --- | --- |
| `reconstructions.png` | images, and their latents decoded |
| `manifold.png` | manifold of four images (equation 19) |
| `interpolation.png` | interpolation between pairs of images |
| `levels_redraw.png`, `levels_zero.png` | levels of representation (Appendix D) |
| `extrapolation_2x.png`, `extrapolation_4x.png` | samples larger than the training images |
| `temperatures.png` | samples by temperature and truncation |
| `latents.md` | moments of the latents of each scale |
"""

from __future__ import annotations

import pathlib

import numpy as np
import run_folder
import tensorflow_probability as tfp
from absl import app, flags

import tfp_realnvp as tfr
from tfp_realnvp import latents, plots
from tfp_realnvp.internal import atomic_files

flags.DEFINE_string("results_dir", None, "Results folder of a training run.", required=True)
flags.DEFINE_string("weights", None, "Weights file; default: the best weights of the run.")
flags.DEFINE_string("dataset", None, "Dataset, as in train_image.py; default: that of the run.")
flags.DEFINE_string("split", "evaluation", "Split; `evaluation`: as in the paper.")
flags.DEFINE_string("output_dir", None, "Output folder; default: the results folder.")
flags.DEFINE_integer("seed", 0, "Seed of the samples and of the choice of images.")
flags.DEFINE_string("data_dir", None, "Data directory of TensorFlow Datasets.")
flags.DEFINE_bool("download", False, "Download missing data.")

FLAGS = flags.FLAGS

_NUM_IMAGES = 256  # for the moments
_NUM_COLUMNS = 8
_ANGLES = ("0", "π/4", "π/2", "3π/4", "π", "5π/4", "3π/2", "7π/4")

tfd = tfp.distributions


def main(argv: list[str]) -> None:
    del argv
    # Float32 networks make the inverse exact.
    model, config = run_folder.load_run(FLAGS.results_dir, FLAGS.weights, mixed_precision=False)
    flow = model.distribution
    images = load_images({**config, "dataset": FLAGS.dataset or config["dataset"]})
    figures = Figures(
        pathlib.Path(FLAGS.output_dir or FLAGS.results_dir),
        run_folder.num_values(config),
    )
    chosen = images[:_NUM_COLUMNS]
    draw_reconstructions(figures, flow, chosen)
    draw_manifold(figures, flow, images[:4])
    draw_interpolation(figures, flow, images)
    draw_levels(figures, flow, chosen)
    draw_extrapolation(figures, flow)
    draw_temperatures(figures, flow)
    write_statistics(figures.folder, flow, images)
    print(f"figures are in {figures.folder}")


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


def load_images(config: dict) -> np.ndarray:
    """Returns the first images of the split in random order."""
    batches = run_folder.load_split(
        config,
        FLAGS.split,
        batch_size=_NUM_IMAGES,
        data_dir=FLAGS.data_dir,
        download=FLAGS.download,
    )
    images = next(batches.dataset.as_numpy_iterator())
    if len(images) < 4:
        raise ValueError(
            f"Expected at least 4 images in split {batches.split!r} of {batches.name!r}, got "
            f"{len(images)}."
        )
    return np.random.default_rng(FLAGS.seed).permutation(images)


def draw_reconstructions(figures: Figures, flow: tfd.Distribution, images: np.ndarray) -> None:
    decoded, error = latents.reconstruct(flow, images)
    figures.save(
        "reconstructions.png",
        np.stack([images + 0.5, decoded]),
        f"Reconstructions, largest error {error:.2g} gray levels",
        row_labels=["image", "decoded"],
    )


def draw_manifold(figures: Figures, flow: tfd.Distribution, images: np.ndarray) -> None:
    figures.save(
        "manifold.png",
        latents.manifold(flow, images, len(_ANGLES)),
        "Manifold of four images at the angles 0 and π/2",
        row_labels=[f"φ = {angle}" for angle in _ANGLES],
        column_labels=[f"φ′ = {angle}" for angle in _ANGLES],
    )


def draw_interpolation(figures: Figures, flow: tfd.Distribution, images: np.ndarray) -> None:
    pairs = min(6, len(images) // 2)
    figures.save(
        "interpolation.png",
        latents.interpolate(flow, images[:pairs], images[pairs : 2 * pairs], _NUM_COLUMNS),
        "Spherical interpolation between the images at both ends",
        column_labels=[f"{i}/{_NUM_COLUMNS - 1}" for i in range(_NUM_COLUMNS)],
    )


def draw_levels(figures: Figures, flow: tfd.Distribution, images: np.ndarray) -> None:
    kept = [2.0**-k for k in reversed(range(flow.bijector.num_scales))]
    for mode, replacement in (("redraw", "sampled"), ("zero", "zero")):
        figures.save(
            f"levels_{mode}.png",
            np.concatenate(
                [
                    images[:, np.newaxis] + 0.5,
                    latents.levels_of_representation(flow, images, mode=mode, seed=FLAGS.seed),
                ],
                axis=1,
            ),
            f"Coarsest latents kept, others {replacement}",
            column_labels=["image", *(f"{100 * fraction:.3g} %" for fraction in kept)],
        )


def draw_extrapolation(figures: Figures, flow: tfd.Distribution) -> None:
    height, width, channels = flow.bijector.image_shape
    for factor in (2, 4):
        size = (factor * height, factor * width, channels)
        samples = latents.extrapolate(flow, size, 4, FLAGS.seed)
        figures.save(
            f"extrapolation_{factor}x.png",
            samples.reshape(2, 2, *size),
            f"Samples of {size[0]}×{size[1]} pixels, trained at {height}×{width}",
        )


def draw_temperatures(figures: Figures, flow: tfd.Distribution) -> None:
    settings = [(each, None) for each in (0.0, 0.5, 0.7, 0.85, 1.0)] + [(1.0, 2.0), (1.0, 1.0)]
    rows = [
        latents.sample_latents(
            flow.bijector.image_shape, _NUM_COLUMNS, FLAGS.seed, *setting, dtype=flow.dtype
        )
        for setting in settings
    ]
    figures.save(
        "temperatures.png",
        latents.decode(flow, np.stack(rows)),
        "Samples by temperature T, or with latents truncated to |z| ≤ t",
        row_labels=[f"T = {each}" if to is None else f"t = {to}" for each, to in settings],
    )


def write_statistics(folder: pathlib.Path, flow: tfd.Distribution, images: np.ndarray) -> None:
    lines = [
        "| scale | latents | mean | standard deviation | skewness | excess kurtosis | largest |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for number, scale in enumerate(latents.latent_statistics(flow, images), start=1):
        moments = (scale.mean, scale.std, scale.skewness, scale.excess_kurtosis, scale.largest)
        shape = "×".join(map(str, scale.shape))
        lines.append(f"| {number} | {shape} | " + " | ".join(f"{m:.3f}" for m in moments) + " |")
    table = "\n".join(lines)
    print(table)
    atomic_files.write_text(folder / "latents.md", table + "\n")


if __name__ == "__main__":
    app.run(main)
