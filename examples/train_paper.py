"""Trains the models of the paper and other flows, with all options as flags; writes a report.

    python examples/train_paper.py --preset=cifar10 --data_dir=...   # a row of the paper's table
    python examples/train_paper.py --dataset=photos --limit_minutes=10
    python examples/train_paper.py --dataset=photos --condition=gray --limit_minutes=10
    python examples/train_paper.py --dataset=images.npz --configuration=jet --mixed_precision
    python examples/train_paper.py --dataset=images.npz --optimizer=adamax --average=0.998

Read `train_image.py` first. The output folder is a preset, which
`tfr.FlowModel.from_preset(folder)` loads. It also contains the flags, a log, checkpoints, samples,
reconstructions, learning curves and a report. The same command resumes an interrupted run. To
continue a finished run, pass more `--epochs` or `--limit_minutes`. Ctrl-C saves a checkpoint after
the current step.

To repeat a run, optionally with other flags:

    python examples/train_paper.py --flagfile=results/photos/flags.txt --output_dir=results/again
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import shlex
import signal
import sys

# TensorFlow uses oneDNN by default only on processors with AVX-512 VNNI or AVX-VNNI instructions.
# On other x86 processors it makes training about 1.4 times as fast.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import datasets
import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from absl import app, flags, logging

import tfp_realnvp as tfr
from tfp_realnvp import evaluation, latents, plots
from tfp_realnvp.distributions.data_spec import parse
from tfp_realnvp.distributions.routing import find_condition_spec
from tfp_realnvp.internal import atomic_files

flags.DEFINE_string(
    "dataset", None, "Name, file or folder, as in datasets.py; default: the preset's."
)
flags.DEFINE_enum(
    "preset", None, sorted(tfr.PAPER_CONFIGURATIONS), "Dataset and model of the paper."
)
flags.DEFINE_enum(
    "configuration",
    None,
    ["paper", "compact", "jet"],
    "Model, with its training; default: paper for presets, else compact.",
)
flags.DEFINE_integer("num_scales", None, "Number of scales.", lower_bound=1)
flags.DEFINE_integer("num_blocks", None, "Blocks of each network.", lower_bound=0)
flags.DEFINE_integer(
    "num_filters", None, "Feature maps of the first networks; width in jet.", lower_bound=1
)
flags.DEFINE_integer("num_couplings", None, "Couplings of each scale, all of jet.", lower_bound=1)
flags.DEFINE_integer("patch_size", None, "Side of the patches of jet.", lower_bound=1)
flags.DEFINE_float(
    "alpha", None, "α of the logit of pixel values; default: 0.05, for compact and color 0.4."
)
flags.DEFINE_enum(
    "transformer",
    None,
    ["affine", "sigmoid_affine", "additive", "rational_quadratic_spline", "logistic_mixture"],
    "Transformer of the couplings; default: by configuration.",
)
flags.DEFINE_bool("invertible_conv", None, "An invertible 1×1 convolution before each coupling.")
flags.DEFINE_bool("split_prior", None, "A learned prior of each half that is factored out.")
flags.DEFINE_integer(
    "attention",
    None,
    "Heads of self-attention in the networks of halved images, or of jet.",
    lower_bound=0,
)
flags.DEFINE_enum(
    "dequantizer",
    None,
    ["uniform", "variational"],
    "Noise that is added to gray levels: uniform, or learned; default: uniform.",
)
flags.DEFINE_float("epochs", None, "Passes over the data; default: 20.")
flags.DEFINE_float("limit_minutes", None, "Total training time, also across restarts.")
flags.DEFINE_integer(
    "batch_size",
    None,
    "Images in a batch; default: 64, 16 for compact.",
    lower_bound=1,
)
flags.DEFINE_enum(
    "optimizer",
    None,
    ["adam", "adamax", "adamw", "muon"],
    "Optimizer; default: muon for compact with affine couplings and without attention, else adam.",
)
flags.DEFINE_float(
    "learning_rate",
    None,
    "Peak learning rate; default: 3e-4 for jet, 4e-3 for compact with affine couplings and without "
    "attention, else 1e-3; twice for adamax.",
)
flags.DEFINE_float(
    "weight_decay",
    None,
    "Weight decay of adamw, of muon, and of jet; default: 4e-3, 0.3, 1/30.",
    lower_bound=0,
)
flags.DEFINE_float(
    "average",
    None,
    "Momentum of moving averages of the weights, which are then evaluated and saved; 0 for none; "
    "default: 0.",
    lower_bound=0,
    upper_bound=1,
)
flags.DEFINE_integer("log_steps", None, "Steps between validations; default: a pass over the data.")
flags.DEFINE_float("save_minutes", 1.0, "Minutes between checkpoints, in addition to validations.")
flags.DEFINE_integer("patience", None, "Validations without improvement before training stops.")
flags.DEFINE_integer(
    "num_validation", None, "Training images to hold out; default: a tenth, at most 1,000."
)
flags.DEFINE_integer("seed", 0, "Seed of weights, noise and data order.")
flags.DEFINE_string("output_dir", None, "Output folder; default: results/<dataset>[_<condition>].")
flags.DEFINE_string("data_dir", None, "Data directory of TensorFlow Datasets.")
flags.DEFINE_bool("download", False, "Download missing data.")
flags.DEFINE_integer("image_size", None, "Height and width to resize images to.")
flags.DEFINE_string("condition", None, "Condition of the images, as in datasets.py.")
flags.DEFINE_float(
    "condition_dropout",
    None,
    "Share of the images that are trained on without their condition.",
    lower_bound=0,
    upper_bound=1,
)
flags.DEFINE_bool("flip", None, "Mirror half of the images; default: as in the paper.")
flags.DEFINE_bool("mixed_precision", False, "Compute networks in bfloat16.")
flags.DEFINE_bool("xla", False, "Compile training steps with XLA.")
flags.DEFINE_bool("recompute", False, "Recompute activations in gradients to save memory.")
flags.DEFINE_bool("tensorboard", True, "Write a TensorBoard log, with samples.")
flags.DEFINE_bool("debug", False, "Show where in the code an error of flags or data was found.")
flags.mark_flags_as_mutual_exclusive(["epochs", "limit_minutes"])

FLAGS = flags.FLAGS

tfd = tfp.distributions

_OPTIMIZERS = {
    "adam": tfr.FusedAdam,
    "adamax": keras.optimizers.Adamax,
    "adamw": keras.optimizers.AdamW,
    "muon": tfr.Muon,
}
_WEIGHT_DECAY = 4e-3

# For each configuration, maps flags to the arguments of the model that they set.
_PARTS = ("num_scales", "num_filters", "num_couplings", "alpha", "transformer", "attention")
_OPTIONS = {
    "paper": {name: name for name in (*_PARTS, "num_blocks", "invertible_conv", "split_prior")},
    "compact": {name: name for name in _PARTS},
    "jet": {
        **{name: name for name in ("patch_size", "num_couplings", "num_blocks")},
        **{"num_filters": "width", "attention": "num_heads"},
    },
}

# Default values of flags, by configuration.
_PAPER = {"batch_size": 64, "epochs": 20.0, "average": 0.0, "dequantizer": "uniform"}
# In a short time, smaller batches learn more; see benchmarks/README.md.
_COMPACT = {**_PAPER, "batch_size": 16}
# The recipe of Jet's authors, for batches of 1,024. Their weight decay is 1e-5 in each step. Keras
# multiplies the weight decay by the learning rate, so we divide by this rate.
_JET = {**_PAPER, "learning_rate": 3e-4, "weight_decay": 1e-5 / 3e-4}
_RECIPES = {"paper": _PAPER, "compact": _COMPACT, "jet": _JET}
_JET_BUDGET = {"warmup": 0.1, "hold": 0.1, "cosine": True}
_JET_OPTIMIZER = {"beta_2": 0.95, "global_clipnorm": 1.0}
# Flags that may differ when a run is resumed.
_WHERE_AND_HOW = ("output_dir", "data_dir", "download", "save_minutes", "tensorboard", "debug")

_BEST_WEIGHTS = "model.weights.h5"  # name of the weights file in a preset

# Limits that make the report fast compared with training. `evaluate.py` evaluates whole splits.
_MAX_IMAGES, _BATCH_SIZE = 2_048, 64
_NUM_SAMPLES = 4  # noise samples of each image
_MAX_DENSITIES, _MAX_DENSITIES_AT_ONCE = 20_000, 1_000  # of images given each class
_MAX_BASELINE_DIMS, _MAX_BASELINE_IMAGES = 3_072, 50_000
_MAX_CLASSES = 20  # rows of samples


def run(argv: list[str]) -> None:
    """Runs `main`; interruptions and errors of flags or data end the script with a message."""
    try:
        main(argv)
    except KeyboardInterrupt:
        print(f"interrupted; to go on:\n  {shlex.join(['python', *sys.argv])}")
        sys.exit(128 + signal.SIGINT)
    except (ImportError, OSError, TypeError, ValueError, tfr.NonFiniteLossError) as error:
        if FLAGS.debug:
            raise
        sys.exit(f"train_paper.py: {error}")


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    keras.utils.set_random_seed(FLAGS.seed)
    if FLAGS.mixed_precision:
        keras.config.set_dtype_policy("mixed_bfloat16")
    given = [line for line in flag_lines(only_given=True) if flag_name(line) != "output_dir"]
    images = fill_in_defaults()
    names = [pathlib.Path(FLAGS.dataset).stem, *filter(None, [FLAGS.condition])]
    output_dir = pathlib.Path(FLAGS.output_dir or f"results/{'_'.join(names)}")
    check_same_run(output_dir / "flags.txt")
    with atomic_files.folder_lock(output_dir, "--output_dir"):
        train_and_report(images, output_dir, given)


def train_and_report(images: datasets.Images, output_dir: pathlib.Path, given: list[str]) -> None:
    """Trains a model and writes the results; `given` are the flags of the command line."""
    atomic_files.write_text(output_dir / "flags.txt", "\n".join(flag_lines()) + "\n")
    model = make_model(images)
    card = {
        "data": data_settings(),
        "training": {"batch_size": FLAGS.batch_size, "seed": FLAGS.seed},
        "command": " ".join(["python examples/train_paper.py", *given]),
    }
    # During training, the checkpoint callback adds the weights.
    model.save_to_preset(output_dir, card=card, weights=False)
    model.compile(make_optimizer(), jit_compile=FLAGS.xla)
    print(f"{model.count_params():,} parameters, {model.distribution.bijector.num_scales} scales")
    seconds = fit(model, images, output_dir)
    if (output_dir / _BEST_WEIGHTS).exists():
        best = tfr.FlowModel.from_preset(output_dir.absolute())
        model.set_weights(best.get_weights())

    num_steps = int(model.optimizer.iterations.numpy())
    report = write_report(model, images, output_dir, num_steps)
    kind = "upper bounds" if model.dequantizer is not None else "means"
    bits = next(iter(report["bits_per_dim"].values()))
    model.save_to_preset(
        output_dir,
        card={
            **card,
            "steps": num_steps,
            "seconds": round(seconds),
            "bits/dim": {split: round(value, 3) for split, value in bits.items()},
            "limits": f"bits/dim are {kind} of at most {_MAX_IMAGES:,} images of a split",
        },
    )


# Flags and data.


def fill_in_defaults() -> datasets.Images:
    """Sets the missing flags to the defaults of this dataset and model; returns the images."""
    if FLAGS.condition_dropout is not None and not FLAGS.condition:
        raise ValueError("Expected --condition_dropout only with --condition.")
    FLAGS.dataset = FLAGS.dataset or FLAGS.preset
    if FLAGS.dataset is None:
        raise ValueError("Expected --dataset or --preset.")
    FLAGS.configuration = FLAGS.configuration or ("paper" if FLAGS.preset else "compact")
    defaults = dict(_RECIPES[FLAGS.configuration])
    if FLAGS.limit_minutes:
        del defaults["epochs"]
    # With a higher rate, training with other couplings or attention is unstable in the first steps.
    is_fast = (
        FLAGS.configuration == "compact"
        and FLAGS.transformer in (None, "affine")
        and not FLAGS.attention
    )
    defaults["optimizer"] = "muon" if is_fast else "adam"
    optimizer = FLAGS.optimizer or defaults["optimizer"]
    learning_rate = 4e-3 if is_fast else 1e-3
    defaults.setdefault("learning_rate", learning_rate * (2 if optimizer == "adamax" else 1))
    if optimizer == "adamw":
        defaults.setdefault("weight_decay", _WEIGHT_DECAY)
    elif FLAGS.weight_decay is not None and optimizer != "muon" and FLAGS.configuration != "jet":
        raise ValueError(
            "Expected --weight_decay only with --optimizer=adamw, --optimizer=muon or jet, got "
            f"--optimizer={optimizer}."
        )
    images = datasets.load(**data_settings(), data_dir=FLAGS.data_dir, download=FLAGS.download)
    for name, value in defaults.items():
        if FLAGS[name].value is None:
            setattr(FLAGS, name, value)
    # If data are missing or too few, the script fails before it creates the output folder.
    images.training_batches(FLAGS.batch_size)
    return images


def flag_lines(only_given: bool = False) -> list[str]:
    """Returns the flags of this script that have a value, as lines of a flag file."""
    own = FLAGS.get_key_flags_for_module(sys.modules[__name__])
    lines = [flag.serialize() for flag in own if flag.present or not only_given]
    return [line for line in lines if line]


def flag_name(line: str) -> str:
    """Returns the name of a flag in a flag file, where `--noxla` sets `xla`."""
    name = line.removeprefix("--").split("=")[0]
    return name if name in FLAGS else name.removeprefix("no")


def check_same_run(path: pathlib.Path) -> None:
    """Raises `ValueError` if flags differ from the flag file, except for longer training."""
    if not path.exists():
        return
    there, here = (
        {flag_name(line): line for line in lines if flag_name(line) not in _WHERE_AND_HOW}
        for lines in (path.read_text(encoding="utf-8").splitlines(), flag_lines())
    )
    for name in ("epochs", "limit_minutes"):
        if {name} <= there.keys() & here.keys():
            before, now = (float(lines[name].split("=")[1]) for lines in (there, here))
            if now > before:
                there[name] = here[name]
    differing = [name for name in sorted({*there, *here}) if there.get(name) != here.get(name)]
    if differing:
        lines = [
            f"  {name}: {there.get(name, '-')} in the folder, {here.get(name, '-')} now"
            for name in differing
        ]
        raise ValueError(
            f"{str(path.parent)!r} contains results of other flags:\n"
            + "\n".join(lines)
            + "\nUse another folder or the flags of that run."
        )


def data_settings() -> dict:
    """Returns the arguments of `datasets.load` that determine the run's images."""
    names = ("condition", "flip", "image_size", "num_validation")
    values = {"name": FLAGS.dataset, **{name: FLAGS[name].value for name in names}}
    return {name: value for name, value in values.items() if value is not None}


# Model and training.


def make_model(images: datasets.Images) -> tfr.FlowModel:
    """Builds the model that the flags describe, for these images, with new weights."""
    # These images can differ from the images of the preset, for example in shape.
    arguments = {}
    for name in ("image_shape", "num_values", "num_classes", "conditional_event_shape"):
        if getattr(images, name) is not None:
            arguments[name] = getattr(images, name)
    options = _OPTIONS[FLAGS.configuration]
    for flag in sorted(set().union(*_OPTIONS.values())):
        if FLAGS[flag].value is None:
            continue
        if flag not in options:
            having = [name for name in _OPTIONS if flag in _OPTIONS[name]]
            raise ValueError(
                f"Expected --{flag} only with --configuration={' or '.join(having)}, got "
                f"--configuration={FLAGS.configuration}."
            )
        arguments[options[flag]] = FLAGS[flag].value
    if FLAGS.condition_dropout is not None:
        arguments["condition_dropout"] = FLAGS.condition_dropout
    if FLAGS.recompute:
        arguments["recompute"] = True
    if FLAGS.configuration == "compact":
        bijector = tfr.RealNVPImage.compact(**arguments)
    elif FLAGS.configuration == "jet":
        bijector = tfr.RealNVPImage.jet(**arguments)
    elif FLAGS.preset:
        bijector = tfr.RealNVPImage.for_dataset(FLAGS.preset, **arguments)
    else:
        bijector = tfr.RealNVPImage(**arguments)
    base = tfd.Sample(tfd.Normal(0.0, 1.0), images.image_shape)
    dequantizer = None
    if FLAGS.dequantizer == "variational":
        dequantizer = tfr.VariationalDequantization(
            images.image_shape, num_values=images.num_values, recompute=FLAGS.recompute
        )
    flow = tfd.TransformedDistribution(base, bijector)
    return tfr.FlowModel(flow, dequantizer=dequantizer, seed=FLAGS.seed, name="real_nvp")


def make_optimizer() -> keras.optimizers.Optimizer:
    """Builds the optimizer that the flags describe; `fit` sets its learning rate."""
    options = {"learning_rate": FLAGS.learning_rate, "global_clipnorm": 100.0}
    if FLAGS.configuration == "jet":
        options |= _JET_OPTIMIZER
    if FLAGS.average:
        options |= {"use_ema": True, "ema_momentum": FLAGS.average}
    if FLAGS.weight_decay is not None:
        options["weight_decay"] = FLAGS.weight_decay
    return _OPTIMIZERS[FLAGS.optimizer](**options)


def fit(model: tfr.FlowModel, images: datasets.Images, output_dir: pathlib.Path) -> float:
    """Trains from the last checkpoint until the limit of steps or minutes; returns the seconds."""
    num_images = images.num_images("train")
    print(f"{images.name}: {num_images:,} training images {images.image_shape}")
    steps_per_pass = num_images // FLAGS.batch_size
    log_steps = FLAGS.log_steps or steps_per_pass
    if FLAGS.limit_minutes:
        limit = {"seconds": 60 * FLAGS.limit_minutes}
    else:
        limit = {"steps": max(1, round(FLAGS.epochs * steps_per_pass))}
    schedule = _JET_BUDGET if FLAGS.configuration == "jet" else {}
    budget = tfr.LearningRateBudget(FLAGS.learning_rate, **limit, **schedule)
    checkpoint = tfr.TrainingCheckpoint(
        output_dir,
        model,
        budget=budget,
        best_weights=_BEST_WEIGHTS,
        save_seconds=60 * FLAGS.save_minutes,
        patience=FLAGS.patience,
    )

    def is_done() -> bool:
        return budget.fraction >= 1 or checkpoint.is_out_of_patience

    if checkpoint.restore():
        print(f"resuming after step {int(model.optimizer.iterations.numpy())}")
    if is_done():
        # Put averaged weights into the model, as `fit` does at its end.
        model.optimizer.finalize_variable_values(model.trainable_variables)
        return budget.used_seconds
    print("tracing the training step, up to a minute; later steps are fast", flush=True)
    log = output_dir / "log.csv"
    epoch, step = divmod(int(model.optimizer.iterations.numpy()), log_steps)
    keep_epochs(log, epoch)
    callbacks = [budget, Progress(budget), keras.callbacks.CSVLogger(log, append=True)]
    if FLAGS.tensorboard:
        folder = output_dir / "tensorboard"
        callbacks += [
            keras.callbacks.TensorBoard(folder, write_graph=False),
            SampleImages(folder, images),
        ]
    callbacks += [checkpoint, Interruption(checkpoint)]
    options = {
        "callbacks": callbacks,
        "validation_data": images.batches("validation", FLAGS.batch_size),
        "verbose": 1 if sys.stdout.isatty() else 2,
    }
    if step:
        # Complete the interrupted epoch first.
        model.fit(
            training_batches(model, images),
            steps_per_epoch=log_steps - step,
            initial_epoch=epoch,
            epochs=epoch + 1,
            **options,
        )
        if is_done():
            return budget.used_seconds
        if FLAGS.average:
            # `fit` left averaged weights in the model. Training continues from the weights without
            # averaging, which are in the checkpoint.
            checkpoint.restore()
        epoch += 1
    last = math.ceil(limit["steps"] / log_steps) if "steps" in limit else 1_000_000
    model.fit(
        training_batches(model, images),
        steps_per_epoch=log_steps,
        initial_epoch=epoch,
        epochs=last,
        **options,
    )
    return budget.used_seconds


def training_batches(model: tfr.FlowModel, images: datasets.Images) -> tf.data.Dataset:
    """Returns the batches that follow the model's last completed training step."""
    step = int(model.optimizer.iterations.numpy())
    return images.training_batches(FLAGS.batch_size, seed=FLAGS.seed, step=step)


class Progress(keras.callbacks.Callback):
    """Adds steps and seconds to the logs of subsequent callbacks."""

    def __init__(self, budget: tfr.LearningRateBudget) -> None:
        super().__init__()
        self._budget = budget

    def on_epoch_end(self, epoch: int, logs: dict) -> None:
        logs["step"] = int(self.model.optimizer.iterations.numpy())
        logs["seconds"] = round(self._budget.elapsed_seconds, 3)


class Interruption(keras.callbacks.Callback):
    """At Ctrl-C, ends training after the current step, with a checkpoint.

    Within a step or a validation, the model may be in a state that must not be saved. A second
    Ctrl-C ends the process at once.
    """

    def __init__(self, checkpoint: tfr.TrainingCheckpoint) -> None:
        super().__init__()
        self._checkpoint = checkpoint
        self._is_requested = False

    def on_train_begin(self, logs: dict | None = None) -> None:
        before = signal.signal(signal.SIGINT, self._request)
        self.model.call_after_fit(lambda: signal.signal(signal.SIGINT, before))

    def _request(self, *_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._is_requested = True
        # `print` would fail if the signal arrives within another `print`.
        os.write(1, b"\nstopping after this step; Ctrl-C again to stop without a checkpoint\n")

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        # A run that resumes from a checkpoint between an epoch and its validation would skip the
        # validation.
        is_last = self.model.stop_training or batch + 1 >= self.params["steps"]
        if self._is_requested and not is_last:
            self._checkpoint.save()
            self._stop()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if self._is_requested:
            self._stop()

    def _stop(self) -> None:
        print(f"saved a checkpoint of step {self.model.optimizer.iterations.numpy()}", flush=True)
        raise KeyboardInterrupt


def keep_epochs(log: pathlib.Path, num_epochs: int) -> None:
    """Removes the rows of the log after `num_epochs`, because training will repeat these epochs."""
    if not log.exists():
        return
    header, *lines = log.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
    kept = [line for line in lines if line.split(",")[0].isdigit()]
    kept = [line for line in kept if int(line.split(",")[0]) < num_epochs]
    # Without rows, remove the header too: it may be truncated, and CSVLogger writes it again.
    atomic_files.write_text(log, "".join([header, *kept]) if kept else "")


# Samples.


def sample_grid(
    flow: tfd.Distribution, images: datasets.Images, split: str, columns: int, seed: int
) -> np.ndarray:
    """Returns samples as gray levels, `uint8` [rows, columns, H, W, C].

    Without a condition there are as many rows as columns. With labels, each of the first 20 classes
    has a row. With other conditions, each row has samples given the condition of an image, and ends
    with this image. If the condition is an image, the row begins with the condition.
    """
    spec = find_condition_spec(flow)
    if spec is None:
        samples = tfr.to_uint8(flow.sample(columns**2, seed=(0, seed)), images.num_values)
        return samples.reshape(columns, columns, *samples.shape[1:])
    before, after = [], []
    if spec.num_classes is not None:
        conditions = np.arange(min(spec.num_classes, _MAX_CLASSES))
    else:
        originals, conditions = next(images.batches(split, columns).as_numpy_iterator())
        after = [originals]
        if spec.event_ndims == 3:
            levels = np.rint(conditions * (images.num_values - 1)).astype(np.uint8)
            before = [np.broadcast_to(levels, originals.shape)]
    number = columns - len(before) - len(after)
    samples = tfr.condition(flow, conditions).sample(number, seed=(0, seed))
    return np.stack([*before, *tfr.to_uint8(samples, images.num_values), *after], axis=1)


class SampleImages(keras.callbacks.Callback):
    """Writes samples to TensorBoard after each epoch, always from the same latents."""

    def __init__(self, folder: pathlib.Path, images: datasets.Images) -> None:
        super().__init__()
        self._writer = tf.summary.create_file_writer(str(folder / "samples"))
        self._images = images

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        with self.model.averaged_weights():
            rows = sample_grid(self.model.distribution, self._images, "validation", 6, seed=0)
        samples = rows.reshape(-1, *rows.shape[2:])
        grid = plots.image_grid(samples, columns=6, num_values=self._images.num_values)
        with self._writer.as_default(step=epoch):
            tf.summary.image("samples", grid[np.newaxis])
        self._writer.flush()


# The report.


def write_report(
    model: tfr.FlowModel, images: datasets.Images, output_dir: pathlib.Path, num_steps: int
) -> dict:
    """Draws samples, reconstructions and learning curves; prints, writes and returns bits/dim.

    The report contains the bits/dim of the model and of two baselines, or the reason why there are
    no baselines. With `condition_dropout` the report contains bits/dim without a condition; with a
    variational dequantizer, importance-weighted bits/dim of the held-out images, a tighter bound.
    For a model of labels, the report also contains the accuracy of classification by Bayes' rule.
    """
    held_out = images.evaluation_split
    splits = ("train", held_out)
    num_values, spec = images.num_values, model.data_spec.condition_spec
    noise = {"num_samples": _NUM_SAMPLES, "dequantizer": model.dequantizer, "seed": model.seed}
    first = {split: first_images(images, split) for split in splits}
    options = {"batch_size": _BATCH_SIZE}

    def mean_bits(levels: np.ndarray, condition: np.ndarray | None) -> float:
        logs = model.evaluate(levels, condition, verbose=0, return_dict=True, **options)
        return logs["bits_per_dim"]

    title = "Real NVP" if model.dequantizer is None else "Real NVP (bound)"
    bits = {title: {name: mean_bits(*examples) for name, examples in first.items()}}
    if model.dequantizer is not None:
        examples = first[held_out]
        found = evaluation.bits_per_dim(model.distribution, examples, **noise, **options)
        bits["importance-weighted"] = {held_out: found.importance_weighted}
    if spec is not None and spec.may_be_missing:
        bits["without condition"] = {
            split: mean_bits(levels, None) for split, (levels, _) in first.items()
        }
    if (left_out := why_no_baselines(images)) is None:
        bits |= baseline_bits(images)

    levels, condition = (None if part is None else part[:32] for part in first[held_out])
    decoded, error = latents.reconstruct(model.distribution, levels, conditional_input=condition)
    pairs = np.stack([levels, tfr.to_uint8(decoded, num_values)], axis=1)
    samples = sample_grid(model.distribution, images, held_out, 8, FLAGS.seed)
    for name, rows in (("samples", samples), ("reconstructions", pairs)):
        rows = rows.reshape(-1, *rows.shape[2:])
        plots.save_image_grid(output_dir / f"{name}.png", rows, 8, num_values=num_values)
    save_curves(output_dir)

    print(f"\n{'bits/dim':<20}" + "".join(f"{name:>12}" for name in splits))
    for name, by_split in bits.items():
        values = (f"{by_split[split]:.3f}" if split in by_split else "" for split in splits)
        print(f"{name:<20}" + "".join(f"{value:>12}" for value in values))
    report = {"bits_per_dim": bits, "reconstruction_error": error, "steps": num_steps}
    if left_out is not None:
        report["no_baselines"] = left_out
        print(f"no baselines: {left_out}")
    if spec is not None and spec.num_classes is not None:
        number = max(1, _MAX_DENSITIES // (_NUM_SAMPLES * spec.num_classes))
        at_once = max(1, _MAX_DENSITIES_AT_ONCE // spec.num_classes)
        examples = images.batches(held_out, 1).take(number).rebatch(at_once)
        found = evaluation.classification(model.distribution, examples, **noise)
        report["classification"] = dataclasses.asdict(found)
        print(
            f"classification of {found.num_events:,} {held_out} images: {found.accuracy:.1%} "
            f"right, expected calibration error {found.expected_calibration_error:.3f}"
        )
    print(f"largest error of decode(encode(x)): {error:.2g} gray levels")
    print(f"results are in {output_dir}: tfr.FlowModel.from_preset({str(output_dir)!r})")
    atomic_files.write_json(output_dir / "report.json", report)
    return report


def first_images(
    images: datasets.Images, split: str, number: int | None = _MAX_IMAGES
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the first images of a split as an array, and their conditions or `None`."""
    number = images.num_images(split) if number is None else number
    batch = next(images.batches(split, number).as_numpy_iterator())
    return parse(batch)[:2]


def why_no_baselines(images: datasets.Images) -> str | None:
    """Returns why a report has no baselines, or `None` if it has them."""
    num_dims, number = math.prod(images.image_shape), images.num_images("train")
    if num_dims > _MAX_BASELINE_DIMS:
        return f"images of {num_dims:,} dimensions are too large, more than {_MAX_BASELINE_DIMS:,}"
    if number > _MAX_BASELINE_IMAGES:
        return f"{number:,} training images are too many, more than {_MAX_BASELINE_IMAGES:,}"
    if number <= num_dims:
        return f"a Gaussian of {num_dims:,} dimensions overfits {number:,} training images"
    return None


def baseline_bits(images: datasets.Images) -> dict[str, dict[str, float]]:
    """Returns the bits/dim of a Gaussian and of pixel histograms, fitted to the training images."""
    splits = ("train", images.evaluation_split)
    arrays = {split: first_images(images, split, number=None)[0] for split in splits}
    train = arrays["train"]
    mirrored = [train[:, :, ::-1]] if images.flip else []
    gaussian = fit_gaussian(np.concatenate([train, *mirrored]))
    return {
        "Gaussian": {name: gaussian_bits_per_dim(gaussian, part) for name, part in arrays.items()},
        "pixel histograms": {
            name: histogram_bits_per_dim(train, part, images.num_values)
            for name, part in arrays.items()
        },
    }


def fit_gaussian(images: np.ndarray) -> tfd.MultivariateNormalTriL:
    """Returns the Gaussian with the mean and covariance of images `[N, H, W, C]` and noise U[0, 1).

    The noise has mean 1/2 and variance 1/12, so the covariance is regular even if a pixel is
    constant.
    """
    mean = images.mean(axis=0, dtype=np.float64).ravel()
    covariance = np.eye(len(mean)) / 12
    for pixels in in_parts(images):
        covariance += (pixels - mean).T @ (pixels - mean) / len(images)
    return tfd.MultivariateNormalTriL(mean + 0.5, np.linalg.cholesky(covariance))


def gaussian_bits_per_dim(
    gaussian: tfd.MultivariateNormalTriL, images: np.ndarray, seed: int = 0
) -> float:
    """Returns the bits/dim of images with noise U[0, 1), under a Gaussian over their pixels."""
    rng = np.random.default_rng(seed)
    log_prob = sum(
        np.sum(gaussian.log_prob(pixels + rng.random(pixels.shape))) for pixels in in_parts(images)
    )
    return -float(log_prob) / (images.size * math.log(2))


def histogram_bits_per_dim(train: np.ndarray, images: np.ndarray, num_values: int) -> float:
    """Returns the bits/dim of images under independent histograms, one for each pixel and channel.

    If n of the N training images have a gray level at a pixel and channel, the histogram gives this
    level the probability (n + 1) / (N + num_values) there.
    """
    counts, train_counts = (
        np.stack([np.bincount(column, minlength=num_values) for column in columns])
        for columns in (array.reshape(len(array), -1).T for array in (images, train))
    )
    bits = -np.log2((train_counts + 1) / (len(train) + num_values))
    return float(np.sum(counts * bits) / images.size)


def in_parts(images: np.ndarray) -> list[np.ndarray]:
    """Returns images as vectors, 1,024 at a time, so that float64 copies need little memory."""
    return np.array_split(images.reshape(len(images), -1), -(-len(images) // 1024))


def save_curves(output_dir: pathlib.Path) -> None:
    """Draws the logged bits/dim by step."""
    log = output_dir / "log.csv"
    if not log.exists():
        return
    rows = np.genfromtxt(log, delimiter=",", names=True, ndmin=1)
    curves = {
        label: (rows["step"], rows[column])
        for label, column in (("training", "bits_per_dim"), ("validation", "val_bits_per_dim"))
    }
    plots.save_curves(output_dir / "curve.png", curves, "step", "bits/dim")


if __name__ == "__main__":
    app.run(run)
