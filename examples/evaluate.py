"""Evaluates a training run: bits/dim with standard errors and bounds, and the paper's results.

The bits/dim of a model with a condition are given the condition of each image; with
`condition_dropout` also without it. A model of classes is also evaluated as a classifier. With a
variational dequantizer the bits/dim are a bound, and the importance-weighted ones a tighter bound.

    python examples/evaluate.py --results_dir=results/digits
    python examples/evaluate.py --results_dir=results/cifar10 --split=test --num_draws=16

Prints a table and writes it to `evaluation.md` and `evaluation.json` in the output folder.
"""

from __future__ import annotations

import json
import pathlib

from absl import app, flags

import tfp_realnvp as tfr
from tfp_realnvp import data, evaluation

flags.DEFINE_string("results_dir", None, "Results folder of a training run.", required=True)
flags.DEFINE_string("weights", None, "Weights file; default: the best weights of the run.")
flags.DEFINE_string("dataset", None, "Dataset, as in data.load; default: that of the run.")
flags.DEFINE_list("split", "train,evaluation", "Splits; `evaluation`: as in the paper.")
flags.DEFINE_integer("num_draws", 4, "Number of noise samples for each image.", lower_bound=1)
flags.DEFINE_integer("batch_size", None, "Batch size; default: as in training.", lower_bound=1)
flags.DEFINE_integer("num_batches", None, "Number of batches; default: all.", lower_bound=1)
flags.DEFINE_integer("seed", None, "Seed of the noise; default: that of the run.")
flags.DEFINE_string("output", None, "Output folder; default: the results folder.")
flags.DEFINE_string("data_dir", None, "Data directory of TensorFlow Datasets.")
flags.DEFINE_bool("download", False, "Download missing data.")

FLAGS = flags.FLAGS

_MAX_EVALUATIONS = 1_024  # in one batch, to bound memory


def main(argv: list[str]) -> None:
    del argv
    results_dir = pathlib.Path(FLAGS.results_dir).absolute()
    model = tfr.FlowModel.from_preset(results_dir)
    if FLAGS.weights:
        model.load_weights(FLAGS.weights)
    flow, seed = model.distribution, model.seed if FLAGS.seed is None else FLAGS.seed
    settings = json.loads((results_dir / "metadata.json").read_text())["card"]["data"]
    if FLAGS.dataset not in (None, settings["name"]):
        # The images that were held out are of the run's own dataset.
        settings.update(name=FLAGS.dataset, num_validation=0)
    spec = flow.bijector.architecture.condition
    results, classifications = {}, {}
    for split in FLAGS.split:
        images = load_split(settings, split)
        batches = images.dataset.take(FLAGS.num_batches or -1)
        inputs = {images.split: batches}
        if spec is not None and spec.may_be_missing:
            inputs[f"{images.split}, no condition"] = batches.map(lambda images, _: images)
        for name, each in inputs.items():
            results[name] = evaluation.bits_per_dim(
                flow, each, FLAGS.num_draws, dequantizer=model.dequantizer, seed=seed
            )
        if spec is not None and spec.num_classes is not None:
            # Each image is evaluated with each class.
            batches = batches.rebatch(max(1, _MAX_EVALUATIONS // spec.num_classes))
            classifications[images.split] = evaluation.classification(
                flow,
                batches,
                num_draws=FLAGS.num_draws,
                dequantizer=model.dequantizer,
                seed=seed,
            )
    table = evaluation.as_markdown(results, settings["name"], classifications)
    if model.dequantizer is not None:
        table += "\n\nBits/dim are bounds, with noise of variational dequantization."
    print(table)
    output = pathlib.Path(FLAGS.output or results_dir)
    output.mkdir(parents=True, exist_ok=True)
    (output / "evaluation.md").write_text(table + "\n", encoding="utf-8")
    values = evaluation.as_json(results, settings["name"], classifications)
    values["dequantizer"] = "uniform" if model.dequantizer is None else "variational"
    (output / "evaluation.json").write_text(json.dumps(values, indent=2))


def load_split(settings: dict, split: str) -> data.ImageBatches:
    """Returns the batches of a split of the run's data."""
    settings = {**settings, "data_dir": FLAGS.data_dir, "download": FLAGS.download}
    if FLAGS.batch_size is not None:
        settings["batch_size"] = FLAGS.batch_size
    if split == "evaluation":
        split = data.load(**settings, cache_bytes=0).evaluation_split
    return data.load(**settings, split=split)


if __name__ == "__main__":
    app.run(main)
