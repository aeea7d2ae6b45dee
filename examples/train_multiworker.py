r"""Trains Real NVP on several machines, or on several devices of one machine.

Run the same command on each machine. Only the index in `TF_CONFIG` differs:

    TF_CONFIG='{"cluster": {"worker": ["host0:2222", "host1:2222"]},
                "task": {"type": "worker", "index": 0}}' \
      python examples/train_multiworker.py --dataset=cifar10 --output_dir=/shared/cifar10

All workers need access to the output folder. Worker 0 writes checkpoints, a log, and a preset with
the weights of the best validation, which `examples/evaluate.py` reads. If a worker dies, restart
all workers: they resume from the last checkpoint. To continue a finished run, pass more `--epochs`.
Without `TF_CONFIG`, one process trains on all GPUs of the machine.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import sys

# TensorFlow uses oneDNN by default only on processors with AVX-512 VNNI or AVX-VNNI instructions.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import datasets
import keras
import tensorflow as tf
import tensorflow_probability as tfp
from absl import app, flags, logging

import tfp_realnvp as tfr
from tfp_realnvp.internal import atomic_files, replicas

flags.DEFINE_string("dataset", "digits", "Name, file or folder, as in datasets.py.")
flags.DEFINE_string("data_dir", None, "Data directory of TensorFlow Datasets.")
flags.DEFINE_string("output_dir", None, "Output folder; default: results/<dataset>.")
flags.DEFINE_string("condition", None, "Condition of the images, as in datasets.py.")
flags.DEFINE_enum("configuration", "paper", ["paper", "compact"], "Model.")
flags.DEFINE_string("arguments", "{}", "Arguments of the model, as JSON.")
flags.DEFINE_integer("batch_size", 64, "Images in a batch, over all devices.", lower_bound=1)
flags.DEFINE_float("learning_rate", 1e-3, "Peak learning rate.")
flags.DEFINE_integer("epochs", 20, "Passes over the data.", lower_bound=1)
flags.DEFINE_integer("log_steps", None, "Steps between checkpoints; default: a pass over the data.")
flags.DEFINE_integer("num_validation", None, "Training images to hold out; default: a tenth.")
flags.DEFINE_integer("seed", 0, "Seed of weights, noise and data order.")
flags.DEFINE_bool("global_statistics", True, "Batch normalization over all devices.")

FLAGS = flags.FLAGS

tfd = tfp.distributions

_BEST_WEIGHTS = "model.weights.h5"  # name of the weights file in a preset


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    tf.get_logger().setLevel("WARNING")
    # Create the strategy before any TensorFlow operation. The constructor waits for all workers.
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    keras.utils.set_random_seed(FLAGS.seed)
    output_dir = pathlib.Path(FLAGS.output_dir or f"results/{pathlib.Path(FLAGS.dataset).stem}")
    check_same_flags(output_dir / "flags.txt")
    names = ("condition", "num_validation")
    settings = {name: FLAGS[name].value for name in names if FLAGS[name].value is not None}
    images = datasets.load(FLAGS.dataset, **settings, data_dir=FLAGS.data_dir)
    with strategy.scope():
        model = make_model(images)
        model.compile(global_statistics=FLAGS.global_statistics)

    steps_per_pass = images.num_images("train") // FLAGS.batch_size
    log_steps = FLAGS.log_steps or steps_per_pass
    steps = FLAGS.epochs * steps_per_pass
    budget = tfr.LearningRateBudget(FLAGS.learning_rate, steps=steps)
    checkpoint = tfr.TrainingCheckpoint(
        output_dir, model, budget=budget, best_weights=_BEST_WEIGHTS
    )
    card = {"data": {"name": FLAGS.dataset, **settings}}
    is_chief = replicas.is_chief(strategy)
    callbacks = [budget, checkpoint]
    if is_chief:
        atomic_files.write_text(output_dir / "flags.txt", flag_lines())
        # During training, `checkpoint` adds the weights.
        model.save_to_preset(output_dir, card=card, weights=False)
        callbacks.append(keras.callbacks.CSVLogger(output_dir / "log.csv", append=True))
    if checkpoint.restore() and is_chief:
        print(f"resuming after step {int(model.optimizer.iterations.numpy())}", flush=True)
    done = int(model.optimizer.iterations.numpy())
    if done < steps:
        if is_chief:
            print("tracing the training step, up to a minute", flush=True)
        model.fit(
            training_data(strategy, images, done),
            steps_per_epoch=log_steps,
            initial_epoch=done // log_steps,
            epochs=math.ceil(steps / log_steps),
            validation_data=images.batches("validation", FLAGS.batch_size),
            callbacks=callbacks,
            verbose=2 if is_chief else 0,
        )
    if is_chief:
        done = int(model.optimizer.iterations.numpy())
        if (output_dir / _BEST_WEIGHTS).exists():
            model = tfr.FlowModel.from_preset(output_dir.absolute())
        model.save_to_preset(output_dir, card={**card, "steps": done})
        print(f"{done} steps; results are in {output_dir}")


def flag_lines() -> str:
    """Returns the flags of this script that determine the run, as text of a flag file."""
    own = FLAGS.get_key_flags_for_module(sys.modules[__name__])
    lines = [flag.serialize() for flag in own if flag.name not in ("output_dir", "data_dir")]
    return "\n".join(filter(None, lines)) + "\n"


def check_same_flags(path: pathlib.Path) -> None:
    """Raises `ValueError` if a flag other than `--epochs` differs from the flag file."""
    if not path.exists():
        return
    there, here = (
        [line for line in lines.splitlines() if not line.startswith("--epochs=")]
        for lines in (path.read_text(encoding="utf-8"), flag_lines())
    )
    if there != here:
        raise ValueError(
            f"Expected the flags in {path}, or another output folder, got:\n{flag_lines()}"
        )


def make_model(images: datasets.Images) -> tfr.FlowModel:
    """Builds the model that the flags describe, for these images, with new weights."""
    arguments = {
        "num_values": images.num_values,
        "num_classes": images.num_classes,
        "conditional_event_shape": images.conditional_event_shape,
        **json.loads(FLAGS.arguments),
    }
    configurations = {"paper": tfr.RealNVPImage, "compact": tfr.RealNVPImage.compact}
    bijector = configurations[FLAGS.configuration](images.image_shape, **arguments)
    base = tfd.Sample(tfd.Normal(tf.zeros([], bijector.dtype), 1.0), images.image_shape)
    return tfr.FlowModel(tfd.TransformedDistribution(base, bijector), seed=FLAGS.seed)


def training_data(
    strategy: tf.distribute.Strategy, images: datasets.Images, step: int
) -> tf.distribute.DistributedDataset:
    """Returns batches from a step onward. Each worker loads its own part of each batch."""

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        batches = images.training_batches(
            FLAGS.batch_size, seed=FLAGS.seed, step=step, context=context
        )
        return batches.rebatch(context.get_per_replica_batch_size(FLAGS.batch_size))

    return strategy.distribute_datasets_from_function(of_worker)


if __name__ == "__main__":
    app.run(main)
