"""Samples images from a trained model, also with a temperature, truncation or another size.

    python examples/sample.py --results_dir=results/digits
    python examples/sample.py --results_dir=results/digits --temperature=0.7 --size=16,16
    python examples/sample.py --results_dir=results/digits --truncation=2 --output=samples.npy

Writes a grid of the samples to a `.png` file, or a `uint8` array [N, H, W, C] to an `.npy` file.
"""

from __future__ import annotations

import pathlib

import numpy as np
import run_folder
from absl import app, flags

import tfp_realnvp as tfr
from tfp_realnvp import latents, plots
from tfp_realnvp.internal import atomic_files

flags.DEFINE_string("results_dir", None, "Results folder of a training run.", required=True)
flags.DEFINE_string("weights", None, "Weights file; default: the best weights of the run.")
flags.DEFINE_integer("num_images", 64, "Number of samples.", lower_bound=1)
flags.DEFINE_float("temperature", 1.0, "Standard deviation of the latents.", lower_bound=0)
flags.DEFINE_float("truncation", None, "Bound on latents, in standard deviations.")
flags.DEFINE_list("size", None, "height,width of the samples; default: as in training.")
flags.DEFINE_integer("seed", 0, "Seed of the samples.")
flags.DEFINE_string("output", None, ".png or .npy file; default: drawn.png in the results folder.")

FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    del argv
    output = pathlib.Path(FLAGS.output or pathlib.Path(FLAGS.results_dir) / "drawn.png")
    if output.suffix not in (".png", ".npy"):
        raise ValueError(f"Expected an output file *.png or *.npy, got {output}.")
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
        with atomic_files.atomic_write(output) as (file, _):
            np.save(file, samples)
    print(f"wrote {len(samples)} samples of {height}×{width} pixels to {output}")


if __name__ == "__main__":
    app.run(main)
