"""Evaluates a training run: bits/dim with standard errors and bounds, and the paper's results.

For a model with a condition, bits/dim are conditional; with `condition_dropout`, the script also
prints unconditional bits/dim. A model that is conditioned on labels is also evaluated as a
classifier. With a variational dequantizer, bits/dim are upper bounds, and importance-weighted
bits/dim are tighter bounds.

    python examples/evaluate.py --results_dir=results/digits
    python examples/evaluate.py --results_dir=results/cifar10 --split=test --num_samples=16

The script prints a table and writes it to `evaluation.md` and `evaluation.json` in the output
folder.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib

import datasets
from absl import app, flags

import tfp_realnvp as tfr
from tfp_realnvp import evaluation
from tfp_realnvp.distributions.routing import find_condition_spec

flags.DEFINE_string("results_dir", None, "Results folder of a training run.", required=True)
flags.DEFINE_string("weights", None, "Weights file; default: the best weights of the run.")
flags.DEFINE_string("dataset", None, "Dataset, as in datasets.py; default: the dataset of the run.")
flags.DEFINE_list("split", "train,evaluation", "Splits; `evaluation`: as in the paper.")
flags.DEFINE_integer("num_samples", 4, "Number of noise samples for each image.", lower_bound=1)
flags.DEFINE_integer("batch_size", 64, "Batch size.", lower_bound=1)
flags.DEFINE_integer("num_batches", None, "Number of batches; default: all.", lower_bound=1)
flags.DEFINE_integer("seed", None, "Seed of the noise; default: the seed of the run.")
flags.DEFINE_string("output", None, "Output folder; default: the results folder.")
flags.DEFINE_string("data_dir", None, "Data directory of TensorFlow Datasets.")
flags.DEFINE_bool("download", False, "Download missing data.")

FLAGS = flags.FLAGS

_MAX_EVALUATIONS = 1_024  # in one batch, to bound memory

# Table 1 of the paper, in bits/dim.
PAPER_RESULTS = {
    "cifar10": {"real_nvp": 3.49, "pixel_rnn": 3.00, "conv_draw": 3.59, "iaf_vae": 3.28},
    "imagenet32": {"real_nvp_train": 4.26, "real_nvp": 4.28, "pixel_rnn": 3.86, "conv_draw": 4.40},
    "imagenet64": {"real_nvp_train": 3.75, "real_nvp": 3.98, "pixel_rnn": 3.63, "conv_draw": 4.10},
    "lsun/bedroom": {"real_nvp_train": 2.70, "real_nvp": 2.72},
    "lsun/tower": {"real_nvp_train": 2.78, "real_nvp": 2.81},
    "lsun/church_outdoor": {"real_nvp_train": 2.94, "real_nvp": 3.08},
    "celeb_a": {"real_nvp_train": 2.97, "real_nvp": 3.02},
}
# Rows of the table of results; "<" marks variational models, which report upper bounds.
_PAPER_ROWS = {
    "real_nvp_train": "| Real NVP (paper) | train | | {:.2f} | |",
    "real_nvp": "| Real NVP (paper) | test | | {:.2f} | |",
    "pixel_rnn": "| PixelRNN | test | | {:.2f} | |",
    "conv_draw": "| Conv DRAW | test | | < {:.2f} | |",
    "iaf_vae": "| IAF-VAE | test | | < {:.2f} | |",
}


def main(argv: list[str]) -> None:
    del argv
    results_dir = pathlib.Path(FLAGS.results_dir).absolute()
    model = tfr.FlowModel.from_preset(results_dir)
    if FLAGS.weights:
        model.load_weights(FLAGS.weights)
    flow, seed = model.distribution, model.seed if FLAGS.seed is None else FLAGS.seed
    settings = json.loads((results_dir / "metadata.json").read_text())["card"]["data"]
    if FLAGS.dataset not in (None, settings["name"]):
        # The run held out validation images of its own dataset only.
        settings.update(name=FLAGS.dataset, num_validation=0)
    images = datasets.load(**settings, data_dir=FLAGS.data_dir, download=FLAGS.download)
    spec = find_condition_spec(flow)
    results, classifications = {}, {}
    for split in FLAGS.split:
        split = images.evaluation_split if split == "evaluation" else split
        batches = images.batches(split, FLAGS.batch_size).take(FLAGS.num_batches or -1)
        inputs = {split: batches}
        if spec is not None and spec.may_be_missing:
            inputs[f"{split}, no condition"] = batches.map(lambda levels, _: levels)
        for name, each in inputs.items():
            results[name] = evaluation.bits_per_dim(
                flow,
                each,
                num_samples=FLAGS.num_samples,
                dequantizer=model.dequantizer,
                seed=seed,
            )
        if spec is not None and spec.num_classes is not None:
            # The networks evaluate each image once per class.
            batches = batches.rebatch(max(1, _MAX_EVALUATIONS // spec.num_classes))
            classifications[split] = evaluation.classification(
                flow,
                batches,
                num_samples=FLAGS.num_samples,
                dequantizer=model.dequantizer,
                seed=seed,
            )
    paper = PAPER_RESULTS.get(settings["name"])
    table = as_markdown(results, classifications, paper)
    if model.dequantizer is not None:
        table += "\n\nBits/dim are bounds, with noise of variational dequantization."
    print(table)
    output = pathlib.Path(FLAGS.output or results_dir)
    output.mkdir(parents=True, exist_ok=True)
    (output / "evaluation.md").write_text(table + "\n", encoding="utf-8")
    values = {
        "dataset": settings["name"],
        "results": as_json(results),
        "classification": as_json(classifications),
        "paper": paper,
        "dequantizer": "uniform" if model.dequantizer is None else "variational",
    }
    (output / "evaluation.json").write_text(json.dumps(values, indent=2))


def as_markdown(
    results: dict[str, evaluation.Evaluation],
    classifications: dict[str, evaluation.Classification],
    paper: dict[str, float] | None = None,
) -> str:
    """Returns tables of the results by split, with the paper's results on the same dataset."""
    lines = [
        "| model | split | images | bits/dim | importance-weighted |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for split, result in results.items():
        bits = with_error(result.mean, result.standard_error)
        tighter = with_error(result.importance_weighted, result.importance_weighted_error)
        number = f"{result.num_events:,}"
        lines.append(
            f"| this model | {split} | {number} | {bits} | {tighter} (K = {result.num_samples}) |"
        )
    lines += [_PAPER_ROWS[name].format(bits) for name, bits in (paper or {}).items()]
    if classifications:
        lines += [
            "",
            "| split | images | accuracy | expected calibration error | log loss (nats) |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
    for split, result in classifications.items():
        lines.append(
            f"| {split} | {result.num_events:,} | {100 * result.accuracy:.2f}% | "
            f"{result.expected_calibration_error:.4f} | {result.log_loss:.4f} |"
        )
    return "\n".join(lines)


def with_error(value: float, error: float) -> str:
    return f"{value:.3f}" if math.isnan(error) else f"{value:.3f} ± {error:.3f}"


def as_json(results: dict) -> dict:
    """Returns the attributes of results by split; numbers that are not finite become `None`."""
    return {
        split: {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in dataclasses.asdict(result).items()
        }
        for split, result in results.items()
    }


if __name__ == "__main__":
    app.run(main)
