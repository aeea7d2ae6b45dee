r"""Trains Real NVP on several machines, or on several devices of one machine.

Run the same command on each machine. Only the index in `TF_CONFIG` differs:

    TF_CONFIG='{"cluster": {"worker": ["host0:2222", "host1:2222"]},
                "task": {"type": "worker", "index": 0}}' \
      python examples/train_multiworker.py --dataset=cifar10 --output_dir=/shared/cifar10

All workers need access to the output folder. Only worker 0 writes: checkpoints, a log, weights and
the configuration for `examples/evaluate.py`. If a worker dies, restart all; they resume from the
last checkpoint. Without `TF_CONFIG`, one process trains on all GPUs of the machine.
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
from tfp_realnvp.training import workers

flags.DEFINE_string("dataset", "digits", "Name, file or folder, as in data.load.")
flags.DEFINE_string("data_dir", None, "Data directory of TensorFlow Datasets.")
flags.DEFINE_string("output_dir", None, "Output folder; default: results/<dataset>.")
flags.DEFINE_string("condition", None, "Condition of the images, as in data.load.")
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


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    tf.get_logger().setLevel("WARNING")
    # This must come before any TensorFlow operation. It waits for all workers.
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
    is_chief = workers.is_chief(strategy)
    callbacks = [budget, checkpoint]
    if is_chief:
        run_folder.write_config(output_dir, config)
        callbacks.append(keras.callbacks.CSVLogger(output_dir / "log.csv", append=True))
    if checkpoint.restore() and is_chief:
        print(f"resuming after step {int(model.optimizer.iterations.numpy())}", flush=True)
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
    """Returns the configuration of the run."""
    config = {"dataset": FLAGS.dataset, "batch_size": FLAGS.batch_size, "seed": FLAGS.seed}
    if FLAGS.condition:
        config["condition"] = FLAGS.condition
    images = run_folder.load_split(
        config, "train", training=True, cache_bytes=0, data_dir=FLAGS.data_dir
    )
    arguments = run_folder.data_arguments(images) | json.loads(FLAGS.arguments)
    return {
        **config,
        "num_validation": run_folder.num_validation(images, FLAGS.num_validation),
        "bijector": {"configuration": FLAGS.configuration, "arguments": arguments},
    }


def training_data(
    strategy: tf.distribute.Strategy, config: dict, step: int
) -> tf.distribute.DistributedDataset:
    """Returns batches from a step onward. Each worker loads its own part of each batch."""

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
