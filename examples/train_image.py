"""Trains Real NVP on images and reports the results.

    python examples/train_image.py                                   # handwritten digits
    python examples/train_image.py --dataset=photos --limit_minutes=10
    python examples/train_image.py --dataset=images.npz --configuration=compact
    python examples/train_image.py --preset=cifar10 --data_dir=...   # a row of the paper's table
    python examples/train_image.py --condition=label                 # digits given their class
    python examples/train_image.py --dataset=photos --condition=gray --limit_minutes=10
    python examples/train_image.py --optimizer=adamax --average=0.998 --dequantizer=variational

Writes the configuration, a log, checkpoints, weights, samples, reconstructions, learning curves and
a report to the output folder. The same command resumes an interrupted run. To repeat a run,
optionally with other flags:

    python examples/train_image.py --flagfile=results/digits/flags.txt --output_dir=results/again
"""

from __future__ import annotations

import math
import pathlib
import sys

import onednn  # noqa: F401  (before TensorFlow)
import keras
import numpy as np
import run_folder
import run_log
import run_report
import run_samples
import tensorflow as tf
from absl import app, flags, logging

import tfp_realnvp as tfr
from tfp_realnvp import data, plots
from tfp_realnvp.internal import atomic_files

flags.DEFINE_string(
    "dataset", None, "Name, file or folder, as in data.load; default: the preset's."
)
flags.DEFINE_enum(
    "preset", None, sorted(tfr.PAPER_CONFIGURATIONS), "Dataset and model of the paper."
)
flags.DEFINE_enum(
    "configuration", None, ["paper", "compact"], "Model; default: paper for digits and presets."
)
flags.DEFINE_integer("num_scales", None, "Number of scales.", lower_bound=1)
flags.DEFINE_integer("num_blocks", None, "Residual blocks of each network.", lower_bound=0)
flags.DEFINE_integer("num_filters", None, "Feature maps of the first networks.", lower_bound=1)
flags.DEFINE_enum(
    "transformer",
    None,
    ["affine", "rational_quadratic_spline", "logistic_mixture"],
    "Transformer of the couplings; default: that of the configuration.",
)
flags.DEFINE_bool("invertible_conv", None, "An invertible 1×1 convolution before each coupling.")
flags.DEFINE_bool("split_prior", None, "A learned prior of each half that is factored out.")
flags.DEFINE_integer(
    "attention", None, "Heads of self-attention in the networks of halved images.", lower_bound=0
)
flags.DEFINE_enum(
    "dequantizer",
    None,
    ["uniform", "variational"],
    "Noise that is added to gray levels: uniform, or learned; default: learned for digits.",
)
flags.DEFINE_float("epochs", None, "Passes over the data; default: 20, 8 for digits.")
flags.DEFINE_float("limit_minutes", None, "Total training time, also across restarts.")
flags.DEFINE_integer(
    "batch_size",
    None,
    "Images in a batch; default: 64, 16 for compact, 32 for digits.",
    lower_bound=1,
)
flags.DEFINE_enum("optimizer", "adam", ["adam", "adamax", "adamw"], "Optimizer.")
flags.DEFINE_float(
    "learning_rate",
    None,
    "Peak learning rate; default: 4e-3 for compact and digits with affine couplings and without "
    "attention, else 1e-3; twice for adamax.",
)
flags.DEFINE_float("weight_decay", None, "Weight decay of adamw; default: 4e-3.", lower_bound=0)
flags.DEFINE_float(
    "average",
    None,
    "Momentum of moving averages of the weights, which are then evaluated and saved; 0 for none; "
    "default: 0, 0.97 for digits.",
    lower_bound=0,
    upper_bound=1,
)
flags.DEFINE_integer("log_steps", None, "Steps between validations; default: a pass over the data.")
flags.DEFINE_float("save_minutes", 1.0, "Minutes between checkpoints, in addition to validations.")
flags.DEFINE_integer("patience", None, "Validations without improvement before training stops.")
flags.DEFINE_integer("num_validation", None, "Training images to hold out; default: a tenth.")
flags.DEFINE_integer("seed", 0, "Seed of weights, noise and data order.")
flags.DEFINE_string("output_dir", None, "Output folder; default: results/<dataset>[_<condition>].")
flags.DEFINE_string("data_dir", None, "Data directory of TensorFlow Datasets.")
flags.DEFINE_bool("download", False, "Download missing data.")
flags.DEFINE_integer("image_size", None, "Height and width to resize images to.")
flags.DEFINE_string("condition", None, "Condition of the images, as in data.load.")
flags.DEFINE_float(
    "condition_dropout",
    None,
    "Share of the images that are trained on without their condition.",
    lower_bound=0,
    upper_bound=1,
)
flags.DEFINE_bool("flip", None, "Mirror half of the images; default: as in the paper.")
flags.DEFINE_enum("on_error", "raise", ["raise", "skip"], "Whether to skip damaged images.")
flags.DEFINE_bool("mixed_precision", False, "Compute networks in bfloat16.")
flags.DEFINE_bool("xla", False, "Compile training steps with XLA.")
flags.DEFINE_bool("recompute", False, "Recompute activations in gradients to save memory.")
flags.DEFINE_bool("tensorboard", True, "Write a TensorBoard log, with samples.")
flags.mark_flags_as_mutual_exclusive(["epochs", "limit_minutes"])

FLAGS = flags.FLAGS

_OPTIMIZERS = {
    "adam": tfr.FusedAdam,
    "adamax": keras.optimizers.Adamax,
    "adamw": keras.optimizers.AdamW,
}
_WEIGHT_DECAY = 4e-3

# Of flags that are not given.
_PAPER = {"batch_size": 64, "epochs": 20.0, "average": 0.0, "dequantizer": "uniform"}
# Smaller batches learn more in the same time where the time is short; see benchmarks/README.md.
_COMPACT = {**_PAPER, "batch_size": 16}
# Few images: small networks and batches, averages against overfitting, and learned noise, which
# counts most where gray levels are few.
_DIGITS = {"batch_size": 32, "epochs": 8.0, "average": 0.97, "dequantizer": "variational"}
_DIGITS_MODEL = {"num_blocks": 1, "num_filters": 16, "invertible_conv": True, "split_prior": True}


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    keras.utils.set_random_seed(FLAGS.seed)
    config = make_config()
    names = [pathlib.Path(config["dataset"]).stem, *filter(None, [FLAGS.condition])]
    output_dir = pathlib.Path(FLAGS.output_dir or f"results/{'_'.join(names)}")
    run_folder.check_same_config(output_dir, config)
    run_folder.write_config(output_dir, config)
    given = [flag.serialize() for flag in FLAGS.get_key_flags_for_module(sys.modules[__name__])]
    atomic_files.write_text(output_dir / "flags.txt", "\n".join(filter(None, given)) + "\n")

    model = run_folder.build_model(config)
    model.compile(make_optimizer(config), jit_compile=FLAGS.xla)
    print(f"{model.count_params():,} parameters, {model.distribution.bijector.num_scales} scales")
    fit(model, config, output_dir)
    num_steps = int(model.optimizer.iterations)
    if (output_dir / run_folder.BEST_WEIGHTS).exists():
        model.load_weights(output_dir / run_folder.BEST_WEIGHTS)
    tfr.save_weights(model, output_dir / run_folder.FINAL_WEIGHTS)
    run_report.write_report(
        model,
        load(config, "train"),
        load(config, "evaluation"),
        output_dir,
        num_steps=num_steps,
        seed=FLAGS.seed,
    )


def load(config: dict, split: str, **options: int) -> data.ImageBatches:
    """Returns batches of a split."""
    return run_folder.load_split(
        config, split, data_dir=FLAGS.data_dir, download=FLAGS.download, **options
    )


def make_config() -> dict:
    """Returns the configuration of the run."""
    dataset = FLAGS.dataset or FLAGS.preset or "digits"
    is_digits = dataset == "digits" and not FLAGS.preset
    configuration = FLAGS.configuration or ("paper" if FLAGS.preset or is_digits else "compact")
    defaults = _DIGITS if is_digits else _COMPACT if configuration == "compact" else _PAPER
    given = {name: FLAGS[name].value for name in defaults if FLAGS[name].value is not None}
    values = {**defaults, **given}
    config = {
        "dataset": dataset,
        "batch_size": values["batch_size"],
        "image_size": FLAGS.image_size,
        "flip": FLAGS.flip,
        "on_error": FLAGS.on_error,
        "seed": FLAGS.seed,
    }
    if FLAGS.condition:
        config["condition"] = FLAGS.condition
    elif FLAGS.condition_dropout is not None:
        raise ValueError("Expected --condition_dropout only with --condition.")
    weight_decay = FLAGS.weight_decay
    if FLAGS.optimizer == "adamw":
        weight_decay = _WEIGHT_DECAY if weight_decay is None else weight_decay
    elif weight_decay is not None:
        raise ValueError("Expected --weight_decay only with --optimizer=adamw.")
    images = load(config, "train", training=True, cache_bytes=0)
    arguments = {}
    if FLAGS.preset:
        arguments = dict(tfr.PAPER_CONFIGURATIONS[FLAGS.preset])
    elif is_digits:
        arguments = dict(_DIGITS_MODEL)
    # Of the dataset, which can differ from the preset's.
    arguments |= run_folder.data_arguments(images)
    if FLAGS.condition_dropout is not None:
        arguments["condition_dropout"] = FLAGS.condition_dropout
    sizes = ("num_scales", "num_blocks", "num_filters")
    for name in (*sizes, "invertible_conv", "split_prior", "attention"):
        if FLAGS[name].value is not None:
            arguments[name] = FLAGS[name].value
    if FLAGS.transformer is not None:
        arguments["transformer"] = None if FLAGS.transformer == "affine" else FLAGS.transformer
    if FLAGS.recompute:
        arguments["recompute"] = True
    # Other couplings and attention are unstable in the first steps of a higher rate.
    is_stable = FLAGS.transformer in (None, "affine") and not FLAGS.attention
    learning_rate = 4e-3 if is_stable and (is_digits or configuration == "compact") else 1e-3
    if FLAGS.optimizer == "adamax":
        learning_rate *= 2
    return {
        **config,
        "num_validation": run_folder.num_validation(images, FLAGS.num_validation),
        "optimizer": FLAGS.optimizer,
        "learning_rate": FLAGS.learning_rate or learning_rate,
        "weight_decay": weight_decay,
        "average": values["average"] or None,
        "epochs": None if FLAGS.limit_minutes else values["epochs"],
        "limit_minutes": FLAGS.limit_minutes,
        "log_steps": FLAGS.log_steps,
        "patience": FLAGS.patience,
        "mixed_precision": FLAGS.mixed_precision,
        "xla": FLAGS.xla,
        "bijector": {"configuration": configuration, "arguments": arguments},
        "dequantizer": values["dequantizer"],
    }


def make_optimizer(config: dict) -> keras.optimizers.Optimizer:
    """Returns the optimizer of the run; `fit` sets its learning rate."""
    options = {"learning_rate": config["learning_rate"], "global_clipnorm": 100.0}
    if config["average"] is not None:
        options |= {"use_ema": True, "ema_momentum": config["average"]}
    if config["weight_decay"] is not None:
        options["weight_decay"] = config["weight_decay"]
    return _OPTIMIZERS[config["optimizer"]](**options)


def fit(model: tfr.FlowModel, config: dict, output_dir: pathlib.Path) -> None:
    """Trains from the last checkpoint until the limit of steps or minutes."""
    images = load(config, "train", training=True)
    print(f"{images.name}: {images.num_images} training images {images.image_shape}")
    steps_per_pass = images.steps_per_epoch or 1_000
    log_steps = config["log_steps"] or steps_per_pass
    if config["limit_minutes"]:
        limit = {"seconds": 60 * config["limit_minutes"]}
    else:
        limit = {"steps": max(1, round(config["epochs"] * steps_per_pass))}
    budget = tfr.LearningRateBudget(config["learning_rate"], **limit)
    budget.set_model(model)
    checkpoint = tfr.TrainingCheckpoint(
        output_dir,
        model,
        budget=budget,
        save_seconds=60 * FLAGS.save_minutes,
        patience=config["patience"],
    )

    def is_done() -> bool:
        return budget.fraction >= 1 or checkpoint.is_out_of_patience

    if checkpoint.restore():
        done = int(model.optimizer.iterations)
        print(f"resuming after step {done}")
        images = load(config, "train", training=True, step=done)
    if is_done():
        # As at the end of `fit`, which leaves averages in the model.
        model.optimizer.finalize_variable_values(model.trainable_variables)
        return
    validation = load(config, "validation")
    log = output_dir / "log.csv"
    epoch, step = divmod(int(model.optimizer.iterations), log_steps)
    run_log.keep_epochs(log, epoch)
    callbacks = [budget, run_log.Progress(budget), keras.callbacks.CSVLogger(log, append=True)]
    if FLAGS.tensorboard:
        folder = output_dir / "tensorboard"
        callbacks += [
            keras.callbacks.TensorBoard(folder, write_graph=False),
            SampleImages(folder, validation),
        ]
    callbacks.append(checkpoint)
    options = {
        "callbacks": callbacks,
        "validation_data": validation.dataset,
        "verbose": 1 if sys.stdout.isatty() else 2,
    }
    if step:
        # Complete the interrupted epoch first.
        model.fit(
            images.dataset,
            steps_per_epoch=log_steps - step,
            initial_epoch=epoch,
            epochs=epoch + 1,
            **options,
        )
        if is_done():
            return
        if config["average"] is not None:
            # `fit` left averages in the model. The weights are those of the end of the epoch.
            checkpoint.restore()
        done = int(model.optimizer.iterations)
        images, epoch = load(config, "train", training=True, step=done), epoch + 1
    last = math.ceil(limit["steps"] / log_steps) if "steps" in limit else 1_000_000
    model.fit(
        images.dataset, steps_per_epoch=log_steps, initial_epoch=epoch, epochs=last, **options
    )


class SampleImages(keras.callbacks.Callback):
    """Writes samples to TensorBoard after each epoch, always from the same latents."""

    def __init__(self, folder: pathlib.Path, images: data.ImageBatches) -> None:
        super().__init__()
        self._writer = tf.summary.create_file_writer(str(folder / "samples"))
        self._images = images

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        with self.model.averaged_weights():
            rows = run_samples.sample_grid(self.model.distribution, self._images, 6, seed=(0, 0))
        samples = rows.reshape(-1, *rows.shape[2:])
        grid = plots.image_grid(samples, columns=6, num_values=self._images.num_values)
        with self._writer.as_default(step=epoch):
            tf.summary.image("samples", grid[np.newaxis])
        self._writer.flush()


if __name__ == "__main__":
    app.run(main)
