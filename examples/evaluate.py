"""Evaluates a training run: bits/dim with standard errors and bounds, and the paper's results.

    python examples/evaluate.py --results_dir=results/digits
    python examples/evaluate.py --results_dir=results/cifar10 --split=test --num_draws=16

Prints a table and writes it to `evaluation.md` and `evaluation.json` in the output folder.
"""

from __future__ import annotations

import pathlib

import run_folder
from absl import app, flags

from tfp_realnvp import data, evaluation
from tfp_realnvp.internal import atomic_files

flags.DEFINE_string("results_dir", None, "Results folder of a training run.", required=True)
flags.DEFINE_string("weights", None, "Weights file; default: the best weights of the run.")
flags.DEFINE_string("dataset", None, "Dataset, as in train_image.py; default: that of the run.")
flags.DEFINE_list("split", "train,evaluation", "Splits; `evaluation`: as in the paper.")
flags.DEFINE_integer("num_draws", 4, "Number of noise samples for each image.", lower_bound=1)
flags.DEFINE_integer("batch_size", None, "Batch size; default: as in training.", lower_bound=1)
flags.DEFINE_integer("num_batches", None, "Number of batches; default: all.", lower_bound=1)
flags.DEFINE_integer("seed", None, "Seed of the noise; default: that of the run.")
flags.DEFINE_string("output", None, "Output folder; default: the results folder.")
flags.DEFINE_string("data_dir", None, "Data directory of TensorFlow Datasets.")
flags.DEFINE_bool("download", False, "Download missing data.")

FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    del argv
    model, config = run_folder.load_run(FLAGS.results_dir, FLAGS.weights)
    dataset = FLAGS.dataset or config["dataset"]
    results = {}
    for split in FLAGS.split:
        images = load_split({**config, "dataset": dataset}, split)
        results[images.split] = evaluation.bits_per_dim(
            model.distribution,
            images.dataset.take(FLAGS.num_batches or -1),
            FLAGS.num_draws,
            seed=model.seed if FLAGS.seed is None else FLAGS.seed,
        )
    table = evaluation.as_markdown(results, dataset)
    print(table)
    output = pathlib.Path(FLAGS.output or FLAGS.results_dir)
    atomic_files.write_text(output / "evaluation.md", table + "\n")
    atomic_files.write_json(output / "evaluation.json", evaluation.as_json(results, dataset))


def load_split(config: dict, split: str) -> data.ImageBatches:
    """Returns the batches of a split."""
    batch_size = {} if FLAGS.batch_size is None else {"batch_size": FLAGS.batch_size}
    return run_folder.load_split(
        config, split, data_dir=FLAGS.data_dir, download=FLAGS.download, **batch_size
    )


if __name__ == "__main__":
    app.run(main)
