"""Trains Real NVP on images: data, clusters, flow, compile, fit, bits/dim, samples.

    python examples/train_image.py                                # handwritten digits
    python examples/train_image.py --clusters=0                   # one normal distribution
    python examples/train_image.py --condition=label              # digits given their label
    python examples/train_image.py --dataset=photos --num_filters=32 --epochs=10
    python examples/train_image.py --dataset=folder_of_images --image_size=32

The output folder is a preset, which `tfr.FlowModel.from_preset(folder)` loads. The same command
resumes a killed run after its last complete epoch. To continue a finished run, pass more
`--epochs`. `train_paper.py` trains the models of the paper, and has flags for all options.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shlex
import sys

# TensorFlow uses oneDNN by default only on processors with AVX-512 VNNI or AVX-VNNI instructions.
# On other x86 processors it makes training about 1.4 times as fast.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from absl import app, flags, logging

import tfp_realnvp as tfr

flags.DEFINE_string("dataset", "digits", "Name, file or folder, as in tfr.data.load_arrays.")
flags.DEFINE_integer("image_size", None, "Height and width to resize the images of a folder to.")
flags.DEFINE_enum("condition", None, ["label"], "Train p(image | label).")
flags.DEFINE_integer(
    "clusters", None, "Clusters, of each label; default: by their images; 0: none.", lower_bound=0
)
flags.DEFINE_float("guidance", 0.15, "Guidance of the samples, with clusters.", lower_bound=0)
flags.DEFINE_integer("num_filters", None, "Feature maps of the networks.", lower_bound=1)
flags.DEFINE_integer(
    "epochs", None, "Passes over the data; default: 8 for digits, else 20.", lower_bound=1
)
flags.DEFINE_integer("seed", 0, "Seed of weights, noise and data order.")
flags.DEFINE_string("output_dir", None, "Output folder; default: results/<dataset>[_label].")

FLAGS = flags.FLAGS

tfd = tfp.distributions

# Guidance needs densities without a cluster: training drops the cluster of this share of images.
# With a larger share, bits/dim are lower, but fewer samples without guidance are recognized.
_DROPOUT = 0.03


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    keras.utils.set_random_seed(FLAGS.seed)
    names = [pathlib.Path(FLAGS.dataset).stem, *filter(None, [FLAGS.condition])]
    output_dir = pathlib.Path(FLAGS.output_dir or f"results/{'_'.join(names)}")
    output_dir.mkdir(parents=True, exist_ok=True)
    # A run resumes only with the same flags.
    own = ("dataset", "image_size", "condition", "clusters", "num_filters", "seed")
    run, record = json.dumps({name: FLAGS[name].value for name in own}), output_dir / "flags.json"
    if not record.exists():
        record.write_text(run)
    elif record.read_text() != run:
        raise app.UsageError(
            f"{output_dir} has a run of other flags, {record.read_text()}, and not of {run}; "
            "choose another --output_dir."
        )

    # The data: gray levels [N, H, W, C], and optional labels [N].
    images = tfr.data.load_arrays(FLAGS.dataset, image_size=FLAGS.image_size)
    if images.validation is None:
        images = images.hold_out(min(len(images.train) // 10, 1_000))
    train, validation, test = images.train, images.validation, images.test
    train_labels = None
    if FLAGS.condition:
        if images.num_classes is None:
            raise app.UsageError(f"Expected images with labels, got {FLAGS.dataset}.")
        train_labels = images.train_labels
        validation, test = (validation, images.validation_labels), (test, images.test_labels)
    batch_size = 32 if FLAGS.dataset == "digits" else 16
    print(f"{images.name}: {len(train):,} training images {images.image_shape}")

    # The flow: a bijector from normal latents to images, and the noise between gray levels.
    arguments, clusters = {"num_values": images.num_values}, None
    if FLAGS.clusters != 0:
        # The flow maps the normal distribution to each cluster separately, with or without labels.
        clusters = tfr.Clusters.of(
            train, train_labels, num_clusters=FLAGS.clusters, seed=FLAGS.seed
        )
        print(f"{clusters.num_clusters} clusters")
        arguments |= {"num_classes": clusters.num_clusters, "condition_dropout": _DROPOUT}
    elif FLAGS.condition:
        arguments["num_classes"] = images.num_classes
    if FLAGS.num_filters:
        arguments["num_filters"] = FLAGS.num_filters
    if FLAGS.dataset == "digits":
        # For few images with few gray levels: small networks like the paper's, and learned noise.
        small = {"num_blocks": 1, "num_filters": 16, "normalization": "actnorm"}
        options = {**small, "invertible_conv": True, "split_prior": True, **arguments}
        bijector = tfr.RealNVPImage(images.image_shape, **options)
        dequantizer = tfr.VariationalDequantization(
            images.image_shape, num_values=images.num_values
        )
        learning_rate = 8e-3
    else:
        bijector = tfr.RealNVPImage.compact(images.image_shape, **arguments)
        dequantizer = None  # uniform noise
        learning_rate = 4e-3
    base = tfd.Sample(tfd.Normal(0.0, 1.0), images.image_shape)
    flow = tfd.TransformedDistribution(base, bijector)
    options = {"dequantizer": dequantizer, "seed": FLAGS.seed, "name": "real_nvp"}
    if clusters is not None:
        flow = tfr.ClusterMixture(flow, clusters)

    # Compile: the loss of a FlowModel is -log p.
    model = tfr.FlowModel(flow, **options)
    model.compile(tfr.Muon(learning_rate, global_clipnorm=100.0))
    print(f"{model.count_params():,} parameters")

    # Fit, or resume after the last complete epoch of a killed run.
    epochs = FLAGS.epochs or (8 if FLAGS.dataset == "digits" else 20)
    steps_per_epoch = len(train) // batch_size
    budget = tfr.LearningRateBudget(learning_rate, steps=epochs * steps_per_epoch)
    checkpoint = tfr.TrainingCheckpoint(output_dir, model, budget=budget)
    step = 0
    if checkpoint.restore():
        step = int(model.optimizer.iterations.numpy())
        print(f"resuming {output_dir} after step {step}")
    # The batches after this step; their order depends only on the seed.
    batches = tfr.data.batches(
        train,
        train_labels,
        batch_size=batch_size,
        augment=tf.image.stateless_random_flip_left_right if images.flip else None,
        seed=FLAGS.seed,
        step=step,
    )
    log = output_dir / "log.csv"
    if step < budget.steps:
        print("tracing the training step, up to a minute; later steps are fast", flush=True)
        model.fit(
            batches,
            steps_per_epoch=steps_per_epoch,
            initial_epoch=step // steps_per_epoch,
            epochs=epochs,
            validation_data=validation,
            callbacks=[budget, keras.callbacks.CSVLogger(log, append=True), checkpoint],
            verbose=1 if sys.stdout.isatty() else 2,
        )
    steps = int(model.optimizer.iterations.numpy())
    model.load_weights(output_dir / "best.weights.h5")  # of the best validation

    # Bits/dim of the test images: an upper bound, and a tighter one by importance weighting.
    result = tfr.evaluation.bits_per_dim(model, test, num_samples=4)
    report = {**dataclasses.asdict(result), "steps": steps}
    print(
        f"test: {result.mean:.3f} ± {result.standard_error:.3f} bits/dim, "
        f"importance-weighted {result.importance_weighted:.3f}"
    )
    if FLAGS.condition:
        found = tfr.evaluation.classification(model, test, num_samples=4)
        report["accuracy"] = found.accuracy
        print(f"test: the most probable label is right for {found.accuracy:.1%}")
    (output_dir / "report.json").write_text(json.dumps(report, indent=2))

    # Samples: 8 rows of 8, or a row for each of the first 20 labels.
    labels = np.arange(min(images.num_classes, 20)).repeat(8) if FLAGS.condition else None
    guidance = 0.0 if clusters is None else FLAGS.guidance
    num_samples = 64 if labels is None else len(labels)
    samples = model.sample(num_samples, FLAGS.seed, guidance=guidance, conditional_input=labels)
    # Picture files have at most 256 levels.
    num_values = min(images.num_values, 256)
    levels = tfr.to_uint8(samples * (num_values / images.num_values), num_values)
    tfr.plots.save_image_grid(output_dir / "samples.png", levels, 8, num_values=num_values)

    # Learning curves, and the model as a preset.
    rows = np.genfromtxt(log, delimiter=",", names=True, ndmin=1)
    columns = {"training": "bits_per_dim", "validation": "val_bits_per_dim"}
    curves = {label: (rows["epoch"] + 1, rows[column]) for label, column in columns.items()}
    tfr.plots.save_curves(output_dir / "curve.png", curves, "epoch", "bits/dim")
    settings = {name: FLAGS[name].value for name in ("condition", "image_size")}
    card = {
        "data": {"name": FLAGS.dataset, **{k: v for k, v in settings.items() if v is not None}},
        "training": {"batch_size": batch_size, "seed": FLAGS.seed},
        **({} if clusters is None else {"clusters": clusters.num_clusters}),
        "command": shlex.join(["python", *sys.argv]),
        "steps": steps,
        "bits/dim": {"test": round(result.mean, 3)},
    }
    model.save_to_preset(output_dir, card=card)
    print(f"results are in {output_dir}: tfr.FlowModel.from_preset({str(output_dir)!r})")


if __name__ == "__main__":
    app.run(main)
