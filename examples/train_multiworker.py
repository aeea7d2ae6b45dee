r"""Trains a Real NVP on several machines, or on several devices of one.

Every machine runs the same command, with a `TF_CONFIG` that differs in the index alone:

    TF_CONFIG='{"cluster": {"worker": ["host0:2222", "host1:2222"]},
                "task": {"type": "worker", "index": 0}}' \
      python examples/train_multiworker.py --dataset=cifar10 --output_dir=/shared/cifar10

All of them have to see the output folder, to which worker 0 writes: checkpoints, a log, weights and
the configuration, which `examples/evaluate.py` takes. If one is lost, stop the others and start all
again: training goes on from the last checkpoint. Without `TF_CONFIG` one process trains on all GPUs
of the machine.
"""

from __future__ import annotations

import json
import math
import pathlib

import onednn  # noqa: F401  (before TensorFlow)
import keras
import run_folder
import tensorflow as tf
from absl import app, flags, logging

import tfp_realnvp as tfr
from tfp_realnvp import replicas

flags.DEFINE_string("dataset", "digits", "A name that `tfp_realnvp.data.load` knows, or a path.")
flags.DEFINE_string("data_dir", None, "Where tensorflow-datasets keeps its data.")
flags.DEFINE_string("output_dir", None, "Where results go; None: results/ and the data's name.")
flags.DEFINE_enum("configuration", "paper", ["paper", "compact"], "The model.")
flags.DEFINE_string("arguments", "{}", "Of the model, beside those that the data say, as JSON.")
flags.DEFINE_integer("batch_size", 64, "Images in a batch of all devices.", lower_bound=1)
flags.DEFINE_float("learning_rate", 1e-3, "The peak.")
flags.DEFINE_integer("epochs", 20, "Passes over the data.", lower_bound=1)
flags.DEFINE_integer("log_steps", None, "Steps between checkpoints; None: a pass over the data.")
flags.DEFINE_integer("num_validation", None, "Training images to validate on; None: a tenth.")
flags.DEFINE_integer("seed", 0, "Of weights, noise and the order of the data.")
flags.DEFINE_bool("global_statistics", True, "Batch normalisation over all devices.")

FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    tf.get_logger().setLevel("WARNING")
    # First of all: it has to find TensorFlow unused. It waits for all workers.
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    keras.utils.set_random_seed(FLAGS.seed)
    output_dir = pathlib.Path(FLAGS.output_dir or f"results/{pathlib.Path(FLAGS.dataset).stem}")
    config = make_config()
    run_folder.check_same_config(output_dir, config)
    with strategy.scope():
        model = run_folder.build_model(config)
        model.compile(global_statistics=FLAGS.global_statistics)

    images = run_folder.load_split(config, "train", training=True, data_dir=FLAGS.data_dir)
    steps_per_pass = images.steps_per_epoch or 1_000
    log_steps = FLAGS.log_steps or steps_per_pass
    steps = FLAGS.epochs * steps_per_pass
    budget = tfr.LearningRateBudget(FLAGS.learning_rate, steps=steps)
    checkpoint = tfr.TrainingCheckpoint(output_dir, model, budget=budget)
    is_chief = replicas.is_chief(strategy)
    callbacks = [budget, checkpoint]
    if is_chief:
        run_folder.write_config(output_dir, config)
        callbacks.append(keras.callbacks.CSVLogger(output_dir / "log.csv", append=True))
    if checkpoint.restore() and is_chief:
        print(f"going on after step {int(model.optimizer.iterations.numpy())}", flush=True)
    done = int(model.optimizer.iterations.numpy())
    if done < steps:
        validation = run_folder.load_split(config, "validation", data_dir=FLAGS.data_dir)
        model.fit(
            training_data(strategy, config, done),
            steps_per_epoch=log_steps,
            initial_epoch=done // log_steps,
            epochs=math.ceil(steps / log_steps),
            validation_data=validation.dataset,
            callbacks=callbacks,
            verbose=2 if is_chief else 0,
        )
    if is_chief:
        tfr.save_weights(model, output_dir / run_folder.FINAL_WEIGHTS)
        print(f"{int(model.optimizer.iterations.numpy())} steps; results are in {output_dir}")


def make_config() -> dict:
    """Returns what describes the run: it is written beside the results."""
    config = {"dataset": FLAGS.dataset, "batch_size": FLAGS.batch_size, "seed": FLAGS.seed}
    images = run_folder.load_split(
        config, "train", training=True, cache_bytes=0, data_dir=FLAGS.data_dir
    )
    num_validation = FLAGS.num_validation
    if "validation" in images.splits:
        num_validation = 0
    elif num_validation is None:
        num_validation = min((images.num_images or 10_000) // 10, 1_000)
    arguments = {"image_shape": list(images.image_shape), "num_values": images.num_values}
    arguments |= json.loads(FLAGS.arguments)
    return {
        **config,
        "num_validation": num_validation,
        "bijector": {"configuration": FLAGS.configuration, "arguments": arguments},
    }


def training_data(
    strategy: tf.distribute.Strategy, config: dict, step: int
) -> tf.distribute.DistributedDataset:
    """Returns the batches from a step on: each worker loads its own part of each."""

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        images = run_folder.load_split(
            config,
            "train",
            training=True,
            batch_size=config["batch_size"] // context.num_input_pipelines,
            num_shards=context.num_input_pipelines,
            shard_index=context.input_pipeline_id,
            step=step,
            data_dir=FLAGS.data_dir,
        )
        per_device = context.get_per_replica_batch_size(config["batch_size"])
        return images.dataset.rebatch(per_device)

    return strategy.distribute_datasets_from_function(of_worker)


if __name__ == "__main__":
    app.run(main)
