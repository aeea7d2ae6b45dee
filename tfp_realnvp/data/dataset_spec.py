"""The datasets of the paper and their preparation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import tensorflow as tf

from tfp_realnvp.data import preprocessing

__all__ = ["DATASETS", "DatasetSpec", "find_spec"]


def _unchanged(image: tf.Tensor) -> tf.Tensor:
    return image


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """A dataset in TensorFlow Datasets and its preparation.

    Attributes:
      name: name in `tfp_realnvp.data.load`.
      tfds_name: name in TensorFlow Datasets.
      splits: names of the splits.
      evaluation_split: the split whose bits/dim the paper reports.
      image_shape: shape `(H, W, C)` of prepared images.
      flip: whether images are mirrored at random in training.
      prepare: a function of a `uint8` image `[h, w, C]` that returns one of shape `image_shape`.
      augment: a function of a `uint8` image and a seed of two integers that returns an image of
        shape `image_shape`. It replaces `prepare` in training. `None` if flips are the only
        augmentation.
      fetch_note: a note on the download, shown when the data are missing.
    """

    name: str
    tfds_name: str
    splits: tuple[str, ...]
    evaluation_split: str
    image_shape: tuple[int, int, int]
    flip: bool = False
    prepare: Callable[[tf.Tensor], tf.Tensor] = _unchanged
    augment: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None
    fetch_note: str = ""


def _imagenet(name: str, tfds_name: str, size: int, fetch_note: str) -> DatasetSpec:
    return DatasetSpec(
        name=name,
        tfds_name=tfds_name,
        splits=("train", "validation"),
        evaluation_split="validation",
        image_shape=(size, size, 3),
        prepare=functools.partial(preprocessing.prepare_square, size=size),
        fetch_note=fetch_note,
    )


def _lsun(category: str, fetch_note: str) -> DatasetSpec:
    return DatasetSpec(
        name=f"lsun/{category}",
        tfds_name=f"lsun/{category}",
        splits=("train", "validation"),
        evaluation_split="validation",
        image_shape=(64, 64, 3),
        flip=True,
        prepare=preprocessing.prepare_lsun,
        augment=preprocessing.prepare_lsun,
        fetch_note=f"{fetch_note} Preparation needs tensorflow-io.",
    )


_ORIGINAL = (
    "The original archives are not always available. imagenet_resized is a different dataset; its "
    "bits/dim are not comparable."
)
_RESIZED = "The archives are on the ImageNet website."

DATASETS: tuple[DatasetSpec, ...] = (
    DatasetSpec("cifar10", "cifar10", ("train", "test"), "test", (32, 32, 3), flip=True),
    _imagenet("imagenet32", "downsampled_imagenet/32x32", 32, f"About 4 GB. {_ORIGINAL}"),
    _imagenet("imagenet64", "downsampled_imagenet/64x64", 64, f"About 12 GB. {_ORIGINAL}"),
    _imagenet("imagenet_resized/32x32", "imagenet_resized/32x32", 32, f"About 3.5 GB. {_RESIZED}"),
    _imagenet("imagenet_resized/64x64", "imagenet_resized/64x64", 64, f"About 13 GB. {_RESIZED}"),
    DatasetSpec(
        name="celeb_a",
        tfds_name="celeb_a",
        splits=("train", "validation", "test"),
        evaluation_split="validation",
        image_shape=(64, 64, 3),
        flip=True,
        prepare=preprocessing.prepare_celeb_a,
        fetch_note=(
            "About 1.4 GB from a file host with a daily quota. If the download fails, download the "
            "archive and its lists by hand to data_dir/downloads/manual."
        ),
    ),
    _lsun("bedroom", "About 43 GB."),
    _lsun("tower", "About 11 GB."),
    _lsun("church_outdoor", "About 2.3 GB."),
    DatasetSpec("mnist", "mnist", ("train", "test"), "test", (28, 28, 1)),
)


def find_spec(name: str) -> DatasetSpec | None:
    """Returns the entry of `DATASETS` whose name, or name in TensorFlow Datasets, is `name`.

    Returns `None` if there is no such entry.
    """
    return next((spec for spec in DATASETS if name in (spec.name, spec.tfds_name)), None)
