"""Samples images from a trained model, also colder, truncated, or larger.

    python examples/sample.py --results_dir=results/digits
    python examples/sample.py --results_dir=results/digits --temperature=0.7 --size=16,16
    python examples/sample.py --results_dir=results/digits --truncation=2 --output=samples.npy

A `.png` gets a picture of all samples, an `.npy` the `uint8` array, [N, H, W, C].
"""

from __future__ import annotations

import pathlib

import numpy as np
import run_folder
from absl import app, flags

import tfp_realnvp as tfr
from tfp_realnvp import files, latents, plots

flags.DEFINE_string("results_dir", None, "The folder of a run of train_image.py.", required=True)
flags.DEFINE_string("weights", None, "Other weights than the best of the run.")
flags.DEFINE_integer("num_images", 64, "Number of samples.", lower_bound=1)
flags.DEFINE_float("temperature", 1.0, "The latents' standard deviation.", lower_bound=0)
flags.DEFINE_float("truncation", None, "Where latents are cut off, in standard deviations.")
flags.DEFINE_list("size", None, "height,width of the samples; None: as in training.")
flags.DEFINE_integer("seed", 0, "Of the samples.")
flags.DEFINE_string("output", None, "A .png or .npy file; None: drawn.png in the results folder.")

FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    del argv
    output = pathlib.Path(FLAGS.output or pathlib.Path(FLAGS.results_dir) / "drawn.png")
    if output.suffix not in (".png", ".npy"):
        raise ValueError(f"Expected an output *.png or *.npy, got {output}.")
    model, config = run_folder.load_run(FLAGS.results_dir, FLAGS.weights)
    flow = model.distribution
    height, width, channels = flow.bijector.image_shape
    if FLAGS.size:
        height, width = map(int, FLAGS.size)
    z = latents.sample_latents(
        (height, width, channels),
        FLAGS.num_images,
        FLAGS.seed,
        FLAGS.temperature,
        FLAGS.truncation,
        dtype=flow.dtype,
    )
    num_values = run_folder.num_values(config)
    samples = tfr.to_uint8(latents.decode(flow, z), num_values)
    if output.suffix == ".png":
        plots.save_image_grid(output, samples, num_values=num_values)
    else:
        with files.written_whole(output) as (file, _):
            np.save(file, samples)
    print(f"{len(samples)} samples of {height}×{width} in {output}")


if __name__ == "__main__":
    app.run(main)
