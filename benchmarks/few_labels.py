"""Compares classifiers on few labels: `tfr.ClassMixture`, nearest neighbor, label spreading.

    python -m benchmarks.few_labels
    python -m benchmarks.few_labels --first_seed=5    # seeds that had no part in any choice

The script prints the mean and the worst accuracy over five seeds on the rows without a label. A
seed determines the data, the labeled rows, and the initial weights. Label spreading has an
advantage: its kernel and clamping have the best mean accuracy on the evaluated rows themselves.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from absl import app, flags
from sklearn.datasets import load_digits, make_blobs, make_moons
from sklearn.neighbors import KNeighborsClassifier
from sklearn.semi_supervised import LabelSpreading

import tfp_realnvp as tfr

flags.DEFINE_list("data", ["blobs", "moons", "digits"], "Data sets.")
flags.DEFINE_list("labels", ["2 a class", "10", "50"], "Numbers of labels.")
flags.DEFINE_integer("first_seed", 0, "The first seed.", lower_bound=0)
flags.DEFINE_integer("num_seeds", 5, "Seeds.", lower_bound=1)
flags.DEFINE_integer("steps", 1_200, "Steps of training; digits take 812.", lower_bound=2)

FLAGS = flags.FLAGS

tfd = tfp.distributions

_CENTERS = [[0.0, 0.0], [4.0, 0.0], [2.0, 3.5]]
_KERNELS = {
    "blobs": [("knn", 7), ("knn", 15), ("rbf", 20), ("rbf", 100)],
    "moons": [("knn", 7), ("knn", 15), ("rbf", 20), ("rbf", 100)],
    "digits": [("knn", 7), ("knn", 15), ("rbf", 0.001), ("rbf", 0.003)],
}

Classifier = Callable[[np.ndarray, np.ndarray], np.ndarray]  # from rows and labels to classes


def main(argv: list[str]) -> None:
    del argv
    print(f"{'':<18}{'flow':>16}{'one neighbor':>16}{'label spreading':>16}   mean (worst)")
    for name, labels in itertools.product(FLAGS.data, FLAGS.labels):
        seeds = range(FLAGS.first_seed, FLAGS.first_seed + FLAGS.num_seeds)
        data = [make_data(name, labels, seed) for seed in seeds]
        spreading = [
            accuracies(spread_labels(*kernel, alpha), data)
            for kernel, alpha in itertools.product(_KERNELS[name], (0.2, 0.9))
        ]
        results = [
            accuracies(fit_digits if name == "digits" else fit_flow, data),
            accuracies(nearest_neighbor, data),
            max(spreading, key=np.mean),
        ]
        cells = "".join(f"{f'{np.mean(r):.3f} ({min(r):.3f})':>16}" for r in results)
        print(f"{name + ', ' + labels:<18}{cells}", flush=True)


def make_data(name: str, labels: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns rows, classes, and labels: the classes of few rows, -1 for the others."""
    if name == "blobs":
        x, y = make_blobs(600, centers=_CENTERS, cluster_std=0.6, random_state=seed)
    elif name == "moons":
        x, y = make_moons(600, noise=0.08, random_state=seed)
    else:
        x, y = load_digits(return_X_y=True)
        x = x + np.random.default_rng(99).uniform(size=x.shape)
    order = np.random.default_rng(seed).permutation(len(x))
    rows = [order[y[order] == label] for label in np.unique(y)]
    if labels == "2 a class":
        known = np.concatenate([r[:2] for r in rows])
    else:
        # One row of each class, and other rows at random.
        first = [r[0] for r in rows]
        known = np.array([*first, *(i for i in order if i not in first)][: int(labels)])
    few = np.full(len(x), -1)
    few[known] = y[known]
    return x.astype(np.float32), y, few


def accuracies(classifier: Classifier, data: list[tuple[np.ndarray, ...]]) -> list[float]:
    """Returns the accuracy on the rows without a label, for each dataset."""
    result = []
    for seed, (x, y, few) in enumerate(data, FLAGS.first_seed):
        keras.utils.set_random_seed(seed)
        result.append(np.mean((classifier(x, few) == y)[few < 0]))
    return result


def fit_flow(x: np.ndarray, few: np.ndarray) -> np.ndarray:
    """Classifies with the flow in `docs/conditions.md`."""
    budget = tfr.LearningRateBudget(steps=FLAGS.steps, peak=5e-3)
    return _classify(x, few, 10, epochs=FLAGS.steps, callbacks=[budget])


def fit_digits(x: np.ndarray, few: np.ndarray) -> np.ndarray:
    """Classifies digits with fewer couplings and training steps, at the default learning rate."""
    return _classify(x, few, 6, epochs=28, batch_size=64)


def _classify(x: np.ndarray, few: np.ndarray, num_couplings: int, **options: object) -> np.ndarray:
    num_classes, size = 1 + few.max(), x.shape[1]
    components = tfd.Independent(tfd.Normal(tf.Variable(tf.zeros([num_classes, size])), 1.0), 1)
    base = tfr.ClassMixture(tfd.Categorical(logits=tf.zeros(num_classes)), components)
    bijector = tfr.RealNVPVector(size, num_couplings=num_couplings)
    model = tfr.FlowModel(tfd.TransformedDistribution(base, bijector))
    model.compile()
    model.fit(x, few, verbose=0, **options)
    return tfr.class_log_probs(model, x).numpy().argmax(-1)


def nearest_neighbor(x: np.ndarray, few: np.ndarray) -> np.ndarray:
    """Assigns each row the label of the nearest labeled row."""
    is_known = few >= 0
    return KNeighborsClassifier(1).fit(x[is_known], few[is_known]).predict(x)


def spread_labels(kernel: str, size: float, alpha: float) -> Classifier:
    """Returns label spreading with `size` neighbors or, for an RBF kernel, with `gamma=size`."""
    options = {"n_neighbors": size} if kernel == "knn" else {"gamma": size}

    def classify(x: np.ndarray, few: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the limit of iterations
            model = LabelSpreading(kernel=kernel, alpha=alpha, max_iter=100, **options)
            return model.fit(x, few).transduction_

    return classify


if __name__ == "__main__":
    app.run(main)
