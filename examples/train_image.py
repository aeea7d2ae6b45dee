"""Trains a Real NVP on images, and shows what it has learned.

    python examples/train_image.py                                   # handwritten digits
    python examples/train_image.py --dataset=photos --limit_minutes=10
    python examples/train_image.py --dataset=images.npz --configuration=compact
    python examples/train_image.py --preset=cifar10 --data_dir=... # a row of the paper's table

The output folder gets the configuration, a log, checkpoints, weights, samples, reconstructions,
learning curves and a report. A run that was stopped goes on when the same command is given again.
"""

from __future__ import annotations

import math
import pathlib

import keras
import numpy as np
import run_folder
import tensorflow as tf
from absl import app, flags, logging

import tfp_realnvp as tfr
from tfp_realnvp import baselines, data, plots
from tfp_realnvp.files import write_json

flags.DEFINE_string("dataset", "digits", "A name that `tfp_realnvp.data.load` knows, or a path.")
flags.DEFINE_enum(
    "preset", None, sorted(tfr.PAPER_CONFIGURATIONS), "A row of the paper's table: data and model."
)
flags.DEFINE_enum(
    "configuration", None, ["paper", "compact"], "The model; None: `paper` for digits and presets."
)
flags.DEFINE_integer("num_scales", None, "Number of scales.", lower_bound=1)
flags.DEFINE_integer("num_blocks", None, "Residual blocks of a network.", lower_bound=0)
flags.DEFINE_integer("num_filters", None, "Feature maps of the first networks.", lower_bound=1)
flags.DEFINE_float("epochs", None, "Passes over the data; None: 20, if there is no time limit.")
flags.DEFINE_float("limit_minutes", None, "Time to train, all in all, over restarts.")
flags.DEFINE_integer("batch_size", 64, "Images in a batch.", lower_bound=1)
flags.DEFINE_float("learning_rate", None, "The peak; None: 1e-3, and 2e-3 for `compact`.")
flags.DEFINE_integer("save_steps", None, "Steps from checkpoint to checkpoint; None: an epoch.")
flags.DEFINE_integer("patience", 0, "Checkpoints without a better one until training stops; 0: no.")
flags.DEFINE_integer("num_validation", None, "Training images to validate on; None: a tenth.")
flags.DEFINE_integer("seed", 0, "Of weights, noise and the order of the data.")
flags.DEFINE_string("output_dir", None, "Where results go; None: results/ and the data's name.")
flags.DEFINE_string("data_dir", None, "Where tensorflow-datasets keeps its data.")
flags.DEFINE_bool("download", False, "Whether to fetch data that is absent.")
flags.DEFINE_enum("on_error", "raise", ["raise", "skip"], "What to do with a damaged image.")
flags.DEFINE_bool("mixed_precision", False, "Networks in bfloat16.")
flags.DEFINE_bool("jit_compile", False, "Training step by XLA.")
flags.DEFINE_bool("recompute", False, "Less memory for more time.")
flags.DEFINE_bool("tensorboard", False, "Write a TensorBoard log.")

FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    keras.utils.set_random_seed(FLAGS.seed)
    if FLAGS.mixed_precision:
        keras.config.set_dtype_policy("mixed_bfloat16")
    dataset = FLAGS.preset or FLAGS.dataset
    output_dir = pathlib.Path(FLAGS.output_dir or f"results/{pathlib.Path(dataset).stem}")
    train = load(dataset, "train", training=True)
    config = make_config(dataset, train)
    run_folder.check_same_config(output_dir, config)
    run_folder.write_config(output_dir, config)
    model = run_folder.build_model(config)
    model.compile(jit_compile=FLAGS.jit_compile)
    print(f"{dataset}: {train.num_images} images {train.image_shape} to train on")
    print(f"{model.count_params():,} parameters, {model.distribution.bijector.num_scales} scales")

    fit(model, config, output_dir)
    if (output_dir / "best.weights.h5").exists():
        model.load_weights(output_dir / "best.weights.h5")
    tfr.save_weights(model, output_dir / "final.weights.h5")
    report(model, dataset, output_dir)


def load(dataset: str, split: str, **options: int) -> data.ImageBatches:
    """Returns batches of a split; a data set without one to validate on lends training images."""
    common = {
        "batch_size": FLAGS.batch_size,
        "seed": FLAGS.seed,
        "data_dir": FLAGS.data_dir,
        "download": FLAGS.download,
        "on_error": FLAGS.on_error,
    }
    train = data.load(dataset, training=True, **common)
    if split == "evaluation":
        split = train.evaluation_split
    return data.load(
        dataset, split=split, num_validation=num_validation(train), **common, **options
    )


def num_validation(train: data.ImageBatches) -> int:
    """Returns how many training images are held out."""
    if "validation" in train.splits:
        return 0
    if FLAGS.num_validation is not None:
        return FLAGS.num_validation
    return min((train.num_images or 10_000) // 10, 1_000)


def make_config(dataset: str, train: data.ImageBatches) -> dict:
    """Returns what describes the run: it is written beside the results."""
    arguments = {"image_shape": list(train.image_shape), "num_values": train.num_values}
    if FLAGS.preset:
        arguments |= tfr.PAPER_CONFIGURATIONS[FLAGS.preset]
        arguments["image_shape"] = list(arguments["image_shape"])
    elif dataset == "digits":
        arguments |= {"num_blocks": 1, "num_filters": 32}
    for name in ("num_scales", "num_blocks", "num_filters", "recompute"):
        if FLAGS[name].value:
            arguments[name] = FLAGS[name].value
    default = "paper" if FLAGS.preset or dataset == "digits" else "compact"
    configuration = FLAGS.configuration or default
    return {
        "dataset": dataset,
        "seed": FLAGS.seed,
        "batch_size": FLAGS.batch_size,
        "num_validation": num_validation(train),
        "learning_rate": FLAGS.learning_rate or {"paper": 1e-3, "compact": 2e-3}[configuration],
        "epochs": FLAGS.epochs or (None if FLAGS.limit_minutes else 20.0),
        "limit_minutes": FLAGS.limit_minutes,
        "mixed_precision": FLAGS.mixed_precision,
        "bijector": {"configuration": configuration, "arguments": arguments},
    }


def fit(model: tfr.FlowModel, config: dict, output_dir: pathlib.Path) -> None:
    """Trains until the steps or the minutes are used up, from the last checkpoint on."""
    dataset = config["dataset"]
    train = load(dataset, "train", training=True)
    steps_per_epoch = train.steps_per_epoch or 1_000
    save_steps = FLAGS.save_steps or steps_per_epoch
    if config["limit_minutes"]:
        total = None
        budget = tfr.LearningRateBudget(
            config["learning_rate"], seconds=60 * config["limit_minutes"]
        )
    else:
        total = max(1, round(config["epochs"] * steps_per_epoch))
        budget = tfr.LearningRateBudget(config["learning_rate"], steps=total)
    budget.set_model(model)
    checkpoint = tfr.TrainingCheckpoint(output_dir, model, budget=budget)
    if checkpoint.restore():
        print(f"going on after step {int(model.optimizer.iterations)}")
    if budget.fraction >= 1:
        return

    # The batches go on where the last checkpoint was made.
    done = int(model.optimizer.iterations)
    epoch, step = divmod(done, steps_per_epoch)
    train = load(dataset, "train", training=True, epoch=epoch, step=step)
    log = keras.callbacks.CSVLogger(output_dir / "log.csv", append=True)
    callbacks = [budget, log, checkpoint]
    if FLAGS.patience:
        patience = keras.callbacks.EarlyStopping("val_bits_per_dim", patience=FLAGS.patience)
        callbacks.append(patience)
    if FLAGS.tensorboard:
        folder = output_dir / "tensorboard"
        callbacks += [
            keras.callbacks.TensorBoard(folder, write_graph=False),
            SampleImages(folder, train.num_values),
        ]
    model.fit(
        train.dataset,
        steps_per_epoch=save_steps,
        initial_epoch=done // save_steps,
        epochs=math.ceil(total / save_steps) if total else 9_999,
        validation_data=load(dataset, "validation").dataset,
        callbacks=callbacks,
    )


class SampleImages(keras.callbacks.Callback):
    """Writes samples to TensorBoard after each epoch, always of the same latents."""

    def __init__(self, folder: pathlib.Path, num_values: int) -> None:
        super().__init__()
        self._writer = tf.summary.create_file_writer(str(folder / "samples"))
        self._num_values = num_values

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        samples = tfr.to_uint8(self.model.distribution.sample(64, seed=(0, 0)), self._num_values)
        grid = plots.image_grid(samples, num_values=self._num_values)
        with self._writer.as_default(step=epoch):
            tf.summary.image("samples", grid[np.newaxis])


def report(model: tfr.FlowModel, dataset: str, output_dir: pathlib.Path) -> None:
    """Prints and writes bits/dim beside two simple densities, and draws pictures."""
    train, test = load(dataset, "train"), load(dataset, "evaluation")
    num_values = train.num_values
    flow = model.distribution
    bits = {
        "Real NVP": {
            "train": model.evaluate(train.dataset, verbose=0, return_dict=True)["bits_per_dim"],
            "test": model.evaluate(test.dataset, verbose=0, return_dict=True)["bits_per_dim"],
        }
    }
    if math.prod(train.image_shape) <= 3_072 and (train.num_images or math.inf) <= 50_000:
        arrays = {"train": collect(train), "test": collect(test)}
        gaussian = baselines.FullCovarianceGaussian.fit(
            arrays["train"], num_values, flip=train.flip
        )
        histograms = baselines.IndependentHistograms.fit(arrays["train"], num_values)
        for name, density in (("Gaussian", gaussian), ("pixel histograms", histograms)):
            bits[name] = {split: density.bits_per_dim(arrays[split]) for split in arrays}

    images = tfr.dequantize(next(iter(test.dataset))[:32], seed=(0, 0))
    latents = flow.bijector.inverse(images)
    # Another tensor, so that no cache knows where the latents came from.
    decoded = flow.bijector.forward(tf.identity(latents))
    error = float(tf.reduce_max(tf.abs(decoded - images)))
    samples = flow.sample(64, seed=(0, FLAGS.seed))
    pairs = np.stack([tfr.to_uint8(images, num_values), tfr.to_uint8(decoded, num_values)], axis=1)
    draw = {"num_values": num_values, "columns": 8}
    plots.save_image_grid(output_dir / "samples.png", tfr.to_uint8(samples, num_values), **draw)
    plots.save_image_grid(
        output_dir / "reconstructions.png", pairs.reshape(-1, *pairs.shape[2:]), **draw
    )
    save_curves(output_dir)

    print(f"\n{'bits/dim':<18}{'train':>8}{'test':>8}")
    for name, by_split in bits.items():
        print(f"{name:<18}{by_split['train']:>8.3f}{by_split['test']:>8.3f}")
    print(f"largest error of decode(encode(x)): {error:.2g} grey levels")
    print(f"results are in {output_dir}")
    figures = {"bits_per_dim": bits, "reconstruction_error": error}
    write_json(output_dir / "report.json", figures)


def collect(batches: data.ImageBatches) -> np.ndarray:
    """Returns all images of a split."""
    return np.concatenate(list(batches.dataset.as_numpy_iterator()))


def save_curves(output_dir: pathlib.Path) -> None:
    """Draws the log: bits/dim by epoch."""
    rows = np.genfromtxt(output_dir / "log.csv", delimiter=",", names=True, ndmin=1)
    curves = {
        label: (rows["epoch"] + 1, rows[column])
        for label, column in (("training", "bits_per_dim"), ("validation", "val_bits_per_dim"))
        if column in (rows.dtype.names or ())
    }
    plots.save_curves(output_dir / "curve.png", curves, "epoch", "bits/dim")


if __name__ == "__main__":
    app.run(main)
