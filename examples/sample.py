"""Samples images from a trained model: given a condition, at a temperature, or of another size.

    python examples/sample.py --results_dir=results/digits
    python examples/sample.py --results_dir=results/digits --temperature=0.7 --size=16,16
    python examples/sample.py --results_dir=results/digits --truncation=2 --output=samples.npy
    python examples/sample.py --results_dir=results/digits_label --condition=3 --guidance=0.15

The script writes a grid of the samples to a `.png` file, a `uint8` array [N, H, W, C] to an `.npy`
file, or the array `images` and its `labels` to an `.npz` file. If there are several conditions, the
grid has a row for each: by default the first 20 classes, or the conditions of the first 8 images of
the evaluation split.
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
from tfp_realnvp.distributions.routing import find_condition_spec, find_num_values

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
flags.DEFINE_float(
    "guidance", 0.0, "Guidance, for clusters or a model of condition_dropout.", lower_bound=0
)
flags.DEFINE_float("truncation", None, "Bound on latents, in standard deviations.")
flags.DEFINE_list("size", None, "height,width of the samples; default: as in training.")
flags.DEFINE_integer("seed", 0, "Seed of the samples.")
flags.DEFINE_string("output", None, ".png, .npy or .npz file; default: drawn.png in the results.")
flags.DEFINE_string("data_dir", None, "Data directory of TensorFlow Datasets.")
flags.DEFINE_bool("download", False, "Download missing data.")

FLAGS = flags.FLAGS

_MAX_CLASSES = 20
_NUM_ROWS = 8

tfd = tfp.distributions


def main(argv: list[str]) -> None:
    del argv
    output = pathlib.Path(FLAGS.output or pathlib.Path(FLAGS.results_dir) / "drawn.png")
    if output.suffix not in (".png", ".npy", ".npz"):
        raise ValueError(f"Expected an output file *.png, *.npy or *.npz, got {output}.")
    model = tfr.FlowModel.from_preset(pathlib.Path(FLAGS.results_dir).absolute())
    if FLAGS.weights:
        model.load_weights(FLAGS.weights)
    flow = model.distribution
    conditions = load_conditions(flow)
    rows = 1 if conditions is None else len(conditions)
    columns = math.ceil(FLAGS.num_images / rows)
    labels = None if conditions is None else np.repeat(conditions, columns, axis=0)
    number, num_values = rows * columns, find_num_values(flow)
    if FLAGS.size or FLAGS.truncation:
        # `FlowModel.sample` cannot draw latents of another shape, or truncated latents.
        if FLAGS.guidance:
            raise ValueError("Expected no --guidance with --size or --truncation.")
        height, width, channels = flow.event_shape
        z = latents.sample_latents(
            (*(map(int, FLAGS.size) if FLAGS.size else (height, width)), channels),
            number,
            seed=FLAGS.seed,
            temperature=FLAGS.temperature,
            truncation=FLAGS.truncation,
            dtype=flow.dtype,
        )
        samples = latents.decode(flow, z, conditional_input=labels)
    else:
        options = {"temperature": FLAGS.temperature, "guidance": FLAGS.guidance}
        samples = model.sample(number, FLAGS.seed, conditional_input=labels, **options)
    samples = np.asarray(tfr.to_uint8(samples, num_values))
    if output.suffix == ".png":
        columns = columns if rows > 1 else None
        plots.save_image_grid(output, samples, columns, num_values=num_values)
    elif output.suffix == ".npz":
        if labels is None or labels.ndim != 1:
            raise ValueError("Expected an output file *.npz only for a model of labels.")
        np.savez(output, images=samples, labels=labels)
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        np.save(output, samples)
    height, width = samples.shape[1:3]
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
