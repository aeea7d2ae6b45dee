"""Measures the quality of image samples: `python -m benchmarks.recognition samples.npy`.

Three small convolutional networks, trained on labeled images and never on samples of the flow,
classify images. An additional class consists of images of independent pixels, whose levels are as
frequent as in the training images. For each file of samples, for the test images, and for new
images of independent pixels, the script prints

*   `recognized`: the fraction of images to which the networks assign a class with a mean
    probability above 0.9. (A flow that repeats a single digit would also score well.)
*   `asked`: for a file `*.npz`, the fraction of samples that the networks classify as the label
    that was requested.
*   `precision` and `recall`: precision is the fraction of samples that are at least as close to
    some test image as its third neighbor among the test images; recall is the fraction of test
    images that are at least as close to some sample as its third neighbor among the samples
    (Kynkäänniemi et al. 2019). A flow that produces only few different images has a low recall.
*   `distance`: the median distance to the nearest training image, divided by the same median for
    the test images. The distance is 0 for a flow that copies training images.

Distances are computed in pixel space and, in brackets, in the space of the networks' last features.
Feature space suits photographs.

```
python examples/sample.py --results_dir=results/digits --num_images=1000 --output=samples.npy
python -m benchmarks.recognition samples.npy
python -m benchmarks.recognition samples.npy --data=images_with_labels.npz
```
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np

from tfp_realnvp.data import load_arrays

__all__ = ["CONFIDENCE", "Judge", "main", "precision_and_recall"]

CONFIDENCE, _NUM_NEIGHBORS, _NUM_NETWORKS = 0.9, 3, 3


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Prints and returns the scores of each file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("samples", nargs="*", help="uint8 [N, H, W, C], .npy; or .npz with labels")
    parser.add_argument("--data", default="digits", help="dataset with labels, of load_arrays")
    parser.add_argument("--epochs", type=int, default=30, help="passes over the data")
    flags = parser.parse_args(arguments)
    data = load_arrays(flags.data)
    if data.num_classes is None:
        raise ValueError(f"expected images with labels, got {flags.data}.")
    files = {path: _read(path, data.image_shape) for path in flags.samples}
    judge = Judge(data.train, data.train_labels, data.test, data.num_values, flags.epochs)
    accuracy = (judge.classes(data.test) == data.test_labels).mean()
    print(f"accuracy on {len(data.test)} test images: {accuracy:.1%}")
    files["test images"] = data.test, None
    files["independent pixels"] = judge.independent(seed=1)[: len(data.test)], None
    results = {}
    for name, (images, labels) in files.items():
        results[name] = judge.figures(images, labels)
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in results[name].items()))
    return results


class Judge:
    """Classifies images with networks that are trained on labeled images."""

    def __init__(
        self,
        train: np.ndarray,
        labels: np.ndarray,
        test: np.ndarray,
        num_values: int = 256,
        epochs: int = 30,
    ) -> None:
        """Trains the networks on images [N, H, W, C] with labels [N]."""
        self.train, self.test, self.num_values = train, test, num_values
        self.num_classes = int(labels.max()) + 1
        nothing = self.independent(seed=0)
        images = self._scaled(np.concatenate([train, nothing]))
        classes = np.concatenate([labels, np.full(len(nothing), self.num_classes)])
        self._networks, self._bodies = [], []
        for seed in range(_NUM_NETWORKS):
            keras.utils.set_random_seed(seed)
            network = _network(images.shape[1:], self.num_classes + 1)
            network.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
            network.fit(images, classes, batch_size=64, epochs=epochs, verbose=0)
            self._networks.append(network)
            self._bodies.append(keras.Model(network.inputs, network.layers[-2].output))
        self._spaces = [self._pixels, self._features]
        # Compute the distances of the test images to the training images once.
        self._test = [space(test) for space in self._spaces]
        self._train = [space(train) for space in self._spaces]
        pairs = zip(self._test, self._train, strict=True)
        self._usual = [np.median(_distances(*pair).min(axis=1)) for pair in pairs]

    def independent(self, seed: int) -> np.ndarray:
        """Returns images of independent pixels."""
        return np.random.default_rng(seed).permuted(self.train, axis=0)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Returns the mean probabilities of the classes, [N, C]."""
        x = self._scaled(images)
        found = [network.predict(x, verbose=0, batch_size=256) for network in self._networks]
        return np.mean(found, axis=0)[:, : self.num_classes]

    def classes(self, images: np.ndarray) -> np.ndarray:
        """Returns the most probable class of each image, [N]."""
        return self.probabilities(images).argmax(axis=1)

    def figures(self, images: np.ndarray, labels: np.ndarray | None = None) -> dict[str, float]:
        """Returns the scores of images; `labels` are needed for the score `asked`."""
        probabilities = self.probabilities(images)
        figures = {"recognized": float((probabilities.max(axis=1) > CONFIDENCE).mean())}
        if labels is not None:
            figures["asked"] = float((probabilities.argmax(axis=1) == labels).mean())
        names = ("", " (features)")
        rows = zip(names, self._spaces, self._test, self._train, self._usual, strict=True)
        for name, space, test, train, usual in rows:
            found = space(images)
            # Recall depends on the number of samples, so use as many as test images at a time. Take
            # them from all parts of a file, whose samples may be sorted by label.
            step = max(1, len(found) // len(test))
            parts = [found[i::step][: len(test)] for i in range(step)]
            values = np.mean([precision_and_recall(test, part) for part in parts], axis=0)
            figures[f"precision{name}"], figures[f"recall{name}"] = map(float, values)
            distance = np.median(_distances(found, train).min(axis=1))
            figures[f"distance{name}"] = float(distance / usual)
        return figures

    def _scaled(self, images: np.ndarray) -> np.ndarray:
        return images.astype(np.float32) / (self.num_values - 1)

    def _pixels(self, images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1).astype(np.float32)

    def _features(self, images: np.ndarray) -> np.ndarray:
        x = self._scaled(images)
        found = [body.predict(x, verbose=0, batch_size=256) for body in self._bodies]
        return np.concatenate(found, axis=1)


class PrecisionAndRecall(NamedTuple):
    """Precision of samples and recall of images."""

    precision: float
    recall: float


def precision_and_recall(images: np.ndarray, samples: np.ndarray) -> PrecisionAndRecall:
    """Returns precision and recall of samples [M, D] with regard to images [N, D]."""
    distances = _distances(images, samples)
    precision = (distances <= _radii(images)[:, np.newaxis]).any(axis=0).mean()
    recall = (distances <= _radii(samples)[np.newaxis]).any(axis=1).mean()
    return PrecisionAndRecall(float(precision), float(recall))


def _radii(rows: np.ndarray) -> np.ndarray:
    """Returns the distance of each row to its third neighbor."""
    return np.sort(_distances(rows, rows), axis=1)[:, min(_NUM_NEIGHBORS, len(rows) - 1)]


def _distances(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    squares = (rows**2).sum(axis=1)[:, np.newaxis] + (others**2).sum(axis=1)
    return np.sqrt(np.maximum(squares - 2 * rows @ others.T, 0))


def _network(shape: Sequence[int], num_classes: int) -> keras.Model:
    layers, side = [keras.Input(shape)], min(shape[:2])
    while side > 4:
        layers += [
            keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
        ]
        side //= 2
    layers += [
        keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(64, "relu"),
        keras.layers.Dense(num_classes, "softmax"),
    ]
    return keras.Sequential(layers)


def _read(path: str, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray | None]:
    content = np.load(path)
    is_array = pathlib.Path(path).suffix == ".npy"
    images, labels = (content, None) if is_array else (content["images"], content["labels"])
    if images.shape[1:] != tuple(shape):
        sizes = ", ".join(map(str, shape))
        raise ValueError(f"expected images of shape [N, {sizes}] in {path}, got {images.shape}.")
    return images, labels


if __name__ == "__main__":
    main()
