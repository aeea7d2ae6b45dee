"""Trains classifiers on few labels: a flow learns the density of labeled and unlabeled rows.

    python examples/few_labels.py

The base distribution of the flow is a `ClassMixture`, with one component per class. `fit` maximizes
log p(x | y) of labeled rows, and log p(x) = log sum_y p(x, y) of rows whose label is -1. Bayes'
rule gives the classifier.

Two labels per class suffice for two moons, because `fit` moves the initially equal class means
apart. Digits, with ten labels per class, also need invariance to shifts by a pixel and to noise.
Similar to the consistency loss of FlowGMM, the flow predicts the class of an unlabeled image from
shifted copies. If the prediction is confident, the flow is trained on new copies with this class.
The script compares with logistic regression and a convolutional network of equal size, which learn
only from the labeled images.

We chose the options by the accuracy on unlabeled training images. The choice used labels of other
images than the printed results use.
"""

from __future__ import annotations

import itertools
import os
import pathlib
import warnings
from collections.abc import Callable

# TensorFlow uses oneDNN by default only on processors with AVX-512 VNNI or AVX-VNNI instructions.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
import matplotlib.figure
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from absl import app, flags
from matplotlib.axes import Axes
from sklearn.datasets import make_moons
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

import tfp_realnvp as tfr
from tfp_realnvp import data

flags.DEFINE_string("output_dir", "results/few_labels", "Folder of the figure.")
flags.DEFINE_integer("labels_per_class", 10, "Digits of each class with a label.", lower_bound=2)
flags.DEFINE_integer("num_seeds", 3, "Choices of the digits with a label.", lower_bound=1)
flags.DEFINE_integer("epochs", 60, "Epochs on digits.", lower_bound=1)
flags.DEFINE_integer("moons_steps", 1_200, "Steps on moons.", lower_bound=1)

FLAGS = flags.FLAGS

_BATCH_SIZE = 250
_NUM_COPIES = 10  # copies of each labeled digit in an epoch
_WARMUP = 0.1  # fraction of the epochs that train only on labeled images
_CLEAR = 0.7  # the least probability of a confident prediction
_NOISE = 1.0  # standard deviation of the noise of copies, in gray levels
_DISTANCE = 4.0  # standard deviation of the initial class means

tfd = tfp.distributions


def main(argv: list[str]) -> None:
    del argv
    figure = matplotlib.figure.Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    classify_moons(left)
    compare_on_digits(right)
    path = pathlib.Path(FLAGS.output_dir) / "few_labels.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    print(f"{path} shows both")


def make_flow(means: np.ndarray, **options: int) -> tfd.TransformedDistribution:
    """Returns a flow of vectors, with a normal distribution for each class in latent space.

    Args:
      means: initial means of the classes, [K, D].
      **options: as in `RealNVPVector`.
    """
    num_classes, size = means.shape
    components = tfd.Independent(tfd.Normal(tf.Variable(means, dtype=tf.float32), 1.0), 1)
    base = tfr.ClassMixture(tfd.Categorical(logits=tf.zeros(num_classes)), components)
    return tfd.TransformedDistribution(base, tfr.RealNVPVector(size, **options))


def choose(labels: np.ndarray, per_class: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the indices of `per_class` rows of each class."""
    classes = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    return np.concatenate([rows[:per_class] for rows in classes])


# Two moons.


def classify_moons(axes: Axes) -> None:
    """Trains on points with two labels per moon, and draws them with the predicted classes."""
    keras.utils.set_random_seed(0)
    points, classes = make_moons(600, noise=0.08, random_state=0)
    known = choose(classes, 2, np.random.default_rng(0))
    labels = np.full(len(points), -1)
    labels[known] = classes[known]
    model = tfr.FlowModel(make_flow(np.zeros([2, 2])))
    model.compile()
    budget = tfr.LearningRateBudget(steps=FLAGS.moons_steps, peak=5e-3)
    model.fit(points, labels, epochs=FLAGS.moons_steps, callbacks=[budget], verbose=0)

    def most_probable_class(x: np.ndarray) -> np.ndarray:
        return tfr.class_log_probs(model.distribution, x).numpy().argmax(-1)

    accuracy = (most_probable_class(points) == classes).mean()
    print(f"Two moons, 2 labels each: accuracy {accuracy:.1%}")
    x, y = np.linspace(-1.5, 2.5, 120), np.linspace(-1.0, 1.5, 100)
    plane = most_probable_class(np.stack(np.meshgrid(x, y), axis=-1))
    axes.contourf(x, y, plane, levels=[-0.5, 0.5, 1.5], colors=["C0", "C1"], alpha=0.25)
    axes.scatter(*points.T, s=2, c="gray")
    for row in known:
        axes.scatter(*points[row], s=80, c=f"C{classes[row]}", marker="*", edgecolors="black")
    axes.set_title(f"Two moons, 2 labels each: accuracy {accuracy:.1%}")


# Digits.


def compare_on_digits(axes: Axes) -> None:
    """Compares classifiers on test images, for several choices of labeled images."""
    digits = data.load_arrays("digits")
    accuracies: dict[str, list[float]] = {}
    for seed in range(FLAGS.num_seeds):
        keras.utils.set_random_seed(seed)
        rng = np.random.default_rng(seed)
        known = choose(digits.train_labels, FLAGS.labels_per_class, rng)
        labels = np.full(len(digits.train), -1)
        labels[known] = digits.train_labels[known]
        x, y = digits.train[known], labels[known]
        flow = fit_flow(digits.train, labels, rng)
        classifiers = {
            "flow": lambda images, flow=flow: class_probabilities(flow, images),
            "network": fit_network(x, y, flow.count_params()),
            "network, shifted copies": fit_network(x, y, flow.count_params(), rng),
            "logistic regression": fit_logistic_regression(x, y),
        }
        for name, classifier in classifiers.items():
            is_correct = classifier(digits.test).argmax(-1) == digits.test_labels
            accuracies.setdefault(name, []).append(is_correct.mean())
    print(f"Digits, {FLAGS.labels_per_class} labels a class: accuracy on {len(digits.test)} images")
    for name, values in accuracies.items():
        cells = "".join(f"{value:8.1%}" for value in [*values, np.mean(values)])
        print(f"{name:<26}{cells}")
    draw_accuracies(axes, accuracies)


def fit_flow(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tfr.FlowModel:
    """Trains a flow, at first only on labeled images.

    After the first epochs, confident predictions become the labels of unlabeled images.
    """
    labeled = np.tile(np.flatnonzero(labels >= 0), _NUM_COPIES)
    rows = np.concatenate([np.arange(len(images)), labeled])
    means = rng.normal(0.0, _DISTANCE, [1 + labels.max(), images[0].size])
    num_steps = FLAGS.epochs * len(rows) // _BATCH_SIZE
    flow = make_flow(means, num_couplings=6, num_filters=64)
    model = tfr.FlowModel(flow, dequantize=True)
    rate = keras.optimizers.schedules.CosineDecay(5e-3, num_steps)
    model.compile(keras.optimizers.Adam(rate, global_clipnorm=100.0))
    # Each call of `fit` is one epoch. Until the flow has learned the labels, each call would warn.
    warnings.filterwarnings("ignore", message=".*labeled events are classified")
    num_warmup_epochs = round(_WARMUP * FLAGS.epochs)
    for epoch in range(FLAGS.epochs):
        epoch_rows, epoch_labels = labeled, labels
        if epoch >= num_warmup_epochs:
            probs = class_probabilities(model, images)
            clear = np.where(probs.max(-1) > _CLEAR, probs.argmax(-1), -1)
            epoch_rows, epoch_labels = rows, np.where(labels < 0, clear, labels)
        x = as_vectors(random_copies(images[epoch_rows], rng))
        model.fit(x, epoch_labels[epoch_rows], batch_size=_BATCH_SIZE, verbose=0)
    return model


def class_probabilities(model: tfr.FlowModel, images: np.ndarray) -> np.ndarray:
    """Returns p(y | x) by Bayes' rule, averaged over shifted copies, [N, K]."""
    # With noise in [0, 1), the center of a gray level is at 0.5.
    copies = as_vectors(shifted(images)) + 0.5
    return np.exp(tfr.class_log_probs(model.distribution, copies)).mean(axis=0)


def as_vectors(images: np.ndarray) -> np.ndarray:
    """Returns images [..., H, W, C] as vectors of float32, [..., H W C]."""
    return images.reshape(*images.shape[:-3], -1).astype(np.float32)


def shifted(images: np.ndarray) -> np.ndarray:
    """Returns nine copies, shifted by up to a pixel in both directions, [9, N, H, W, C]."""
    height, width = images.shape[1:3]
    padded = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)])
    corners = itertools.product(range(3), repeat=2)
    return np.stack([padded[:, i : i + height, j : j + width] for i, j in corners])


def random_copies(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns a randomly shifted copy of each image, with noise."""
    copies = shifted(images)[rng.integers(9, size=len(images)), np.arange(len(images))]
    return np.clip(np.rint(copies + rng.normal(0.0, _NOISE, copies.shape)), 0, 16)


# Classifiers that use only the images with a label.

Classifier = Callable[[np.ndarray], np.ndarray]  # from images to probabilities of the classes


def fit_logistic_regression(x: np.ndarray, y: np.ndarray) -> Classifier:
    """Returns the regression with the penalty that has the best cross-validated accuracy."""
    penalties = {"C": np.logspace(-5, 1, 13)}
    model = GridSearchCV(LogisticRegression(max_iter=5_000), penalties, cv=5)
    model.fit(as_vectors(x), y)
    return lambda images: model.predict_proba(as_vectors(images))


def fit_network(
    x: np.ndarray, y: np.ndarray, num_parameters: int, rng: np.random.Generator | None = None
) -> Classifier:
    """Returns a convolutional network with dropout, of about `num_parameters`.

    With `rng`, trains on shifted copies of the images, as many as the flow is trained on, and
    averages the predictions for shifted copies.
    """
    relu, layers = {"activation": "relu"}, keras.layers
    network = keras.Sequential(
        [
            layers.Input(x.shape[1:]),
            layers.Rescaling(1 / 16),
            layers.Conv2D(32, 3, padding="same", **relu),
            layers.Conv2D(32, 3, padding="same", **relu),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, padding="same", **relu),
            layers.Conv2D(64, 3, padding="same", **relu),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.5),
        ]
    )
    # The dense layers get the remaining parameters.
    num_classes, size = int(1 + y.max()), network.output_shape[-1]
    num_units = (num_parameters - network.count_params() - num_classes) // (size + 1 + num_classes)
    network.add(layers.Dense(num_units, **relu))
    network.add(layers.Dropout(0.5))
    network.add(layers.Dense(num_classes, activation="softmax"))
    network.compile("adam", "sparse_categorical_crossentropy")
    if rng is None:
        network.fit(x, y, epochs=10 * _NUM_COPIES, verbose=0)
        return lambda images: network.predict(images, verbose=0)
    copies = np.concatenate([random_copies(x, rng) for _ in range(_NUM_COPIES)])
    network.fit(copies, np.tile(y, _NUM_COPIES), epochs=FLAGS.epochs // 2, verbose=0)
    return lambda images: np.mean([network.predict(x, verbose=0) for x in shifted(images)], axis=0)


def draw_accuracies(axes: Axes, accuracies: dict[str, list[float]]) -> None:
    """Draws the accuracy of each classifier, a point for each choice of labels."""
    for position, values in enumerate(accuracies.values()):
        axes.scatter(values, [position] * len(values), c=f"C{position}", alpha=0.7)
        axes.annotate(f"{np.mean(values):.1%}", (np.mean(values), position - 0.15), ha="center")
    axes.set_yticks(range(len(accuracies)), accuracies)
    axes.margins(x=0.1, y=0.2)
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.invert_yaxis()
    axes.set_title(f"Digits, {FLAGS.labels_per_class} labels a class: accuracy")


if __name__ == "__main__":
    app.run(main)
