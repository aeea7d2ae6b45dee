"""Samples images from a trained model: given a condition, at a temperature, or of another size.

    python examples/sample.py --results_dir=results/digits
    python examples/sample.py --results_dir=results/digits --temperature=0.7 --size=16,16
    python examples/sample.py --results_dir=results/digits --truncation=2 --output=samples.npy
    python examples/sample.py --results_dir=results/digits_label --condition=3

The script writes a grid of the samples to a `.png` file, or a `uint8` array [N, H, W, C] to an
`.npy` file. If there are several conditions, the grid has a row for each: by default the first 20
classes, or the conditions of the first 8 images of the evaluation split.
"""

from __future__ import annotations

import json
import math
import pathlib

import datasets
import numpy as np
import tensorflow_probability as tfp
from absl import app, flags

import tfp_realnvp as tfr
from tfp_realnvp import latents, plots
from tfp_realnvp.distributions.routing import find_condition_spec

flags.DEFINE_string("results_dir", None, "Results folder of a training run.", required=True)
flags.DEFINE_string("weights", None, "Weights file; default: the best weights of the run.")
flags.DEFINE_integer("num_images", 64, "Number of samples, at least.", lower_bound=1)
flags.DEFINE_string(
    "condition",
    None,
    "Labels, or the numbers of a vector, comma-separated; an .npy file of conditions [N, ...]; or "
    "`none`, for a model trained with condition_dropout.",
)
flags.DEFINE_float("temperature", 1.0, "Standard deviation of the latents.", lower_bound=0)
flags.DEFINE_float("truncation", None, "Bound on latents, in standard deviations.")
flags.DEFINE_list("size", None, "height,width of the samples; default: as in training.")
flags.DEFINE_integer("seed", 0, "Seed of the samples.")
flags.DEFINE_string("output", None, ".png or .npy file; default: drawn.png in the results folder.")
flags.DEFINE_string("data_dir", None, "Data directory of TensorFlow Datasets.")
flags.DEFINE_bool("download", False, "Download missing data.")

FLAGS = flags.FLAGS

_MAX_CLASSES = 20
_NUM_ROWS = 8

tfd = tfp.distributions


def main(argv: list[str]) -> None:
    del argv
    output = pathlib.Path(FLAGS.output or pathlib.Path(FLAGS.results_dir) / "drawn.png")
    if output.suffix not in (".png", ".npy"):
        raise ValueError(f"Expected an output file *.png or *.npy, got {output}.")
    model = tfr.FlowModel.from_preset(pathlib.Path(FLAGS.results_dir).absolute())
    if FLAGS.weights:
        model.load_weights(FLAGS.weights)
    flow = model.distribution
    height, width, channels = flow.bijector.image_shape
    if FLAGS.size:
        height, width = map(int, FLAGS.size)
    conditions = load_conditions(flow)
    rows = 1 if conditions is None else len(conditions)
    columns = math.ceil(FLAGS.num_images / rows)
    z = latents.sample_latents(
        (height, width, channels),
        (rows, columns),
        seed=FLAGS.seed,
        temperature=FLAGS.temperature,
        truncation=FLAGS.truncation,
        dtype=flow.dtype,
    )
    if conditions is not None:
        conditions = conditions[:, np.newaxis]
    num_values = flow.bijector.num_values
    samples = tfr.to_uint8(latents.decode(flow, z, conditional_input=conditions), num_values)
    samples = samples.reshape(-1, height, width, channels)
    if output.suffix == ".png":
        columns = columns if rows > 1 else None
        plots.save_image_grid(output, samples, columns, num_values=num_values)
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        np.save(output, samples)
    print(f"wrote {len(samples)} samples of {height}×{width} pixels to {output}")


def load_conditions(flow: tfd.Distribution) -> np.ndarray | None:
    """Returns the conditions of the samples, [N, ...], or `None`."""
    spec = find_condition_spec(flow)
    if FLAGS.condition is not None and spec is None:
        raise ValueError(f"Expected no --condition, the model takes none, got {FLAGS.condition!r}.")
    if spec is None or FLAGS.condition == "none":
        return None
    if FLAGS.condition is not None:
        return parse_conditions(FLAGS.condition, is_label=spec.num_classes is not None)
    if spec.num_classes is not None:
        return np.arange(min(spec.num_classes, _MAX_CLASSES))
    metadata = json.loads((pathlib.Path(FLAGS.results_dir) / "metadata.json").read_text())
    settings = metadata["card"]["data"]
    images = datasets.load(**settings, data_dir=FLAGS.data_dir, download=FLAGS.download)
    batches = images.batches(images.evaluation_split, _NUM_ROWS)
    _, conditions = next(batches.as_numpy_iterator())
    return conditions


def parse_conditions(text: str, is_label: bool) -> np.ndarray:
    """Returns labels [N], one vector [1, K], or the array in a file."""
    if text.endswith(".npy"):
        return np.load(text)
    try:
        numbers = [int(each) if is_label else float(each) for each in text.split(",")]
    except ValueError as error:
        expected = "labels" if is_label else "the numbers of a vector"
        raise ValueError(
            f"Expected {expected}, an .npy file or `none` as --condition, got {text!r}."
        ) from error
    return np.array(numbers if is_label else [numbers])


if __name__ == "__main__":
    app.run(main)
