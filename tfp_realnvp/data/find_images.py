"""Finds the images of a split by the name of the dataset."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Collection
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from absl import logging

from tfp_realnvp.data import image_folder, tfds_condition, tfds_source
from tfp_realnvp.data.array_file import load_array_file
from tfp_realnvp.data.dataset_spec import find_spec
from tfp_realnvp.data.image_source import ImageSource
from tfp_realnvp.data.load_arrays import load_arrays
from tfp_realnvp.data.splits import check_split, hold_out

__all__ = ["SplitImages", "find_images"]

_EMBEDDED = ("digits", "photos")


@dataclasses.dataclass(frozen=True, eq=False)
class SplitImages:
    """The images of a split and the properties of the dataset.

    Attributes:
      images: `uint8` array of shape `[N, H, W, C]`; a tuple of it and of an array `[N, ...]` of
        conditions; or a source to read either from.
      splits: names of all splits.
      evaluation_split: the split to report bits/dim on.
      num_values: number of pixel levels.
      flip: whether images are mirrored at random in training.
      num_classes: number of classes, if conditions are labels.
      conditional_event_shape: shape of a condition, if conditions are vectors.
    """

    images: np.ndarray | tuple[np.ndarray, np.ndarray] | ImageSource
    splits: tuple[str, ...]
    evaluation_split: str
    num_values: int = 256
    flip: bool = False
    num_classes: int | None = None
    conditional_event_shape: tuple[int, ...] | None = None


def find_images(
    name: str,
    split: str,
    *,
    condition: str | None = None,
    num_validation: int = 0,
    image_size: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    data_dir: str | None = None,
    download: bool = False,
    shuffle_buffer: int = 10_000,
) -> SplitImages:
    """Returns the images of a split, with stored conditions.

    The arguments and errors are those of `load`. (The condition `'gray'` is not stored.)

    #### Example

    >>> find_images("digits", "validation", num_validation=100).images.shape
    (100, 8, 8, 1)

    """
    path = pathlib.Path(name)
    if name and name not in _EMBEDDED and find_spec(name) is None and path.is_dir():
        return _from_folder(path, split, condition, num_validation, image_size, on_error)
    if name in _EMBEDDED or path.suffix in (".npy", ".npz"):
        if image_size is not None:
            raise ValueError(f"Expected no image_size for {name!r}, whose image size is fixed.")
        return _from_arrays(name, split, condition, num_validation)
    return _from_tfds(
        name, split, condition, num_validation, image_size, data_dir, download, shuffle_buffer
    )


def _from_arrays(name: str, split: str, condition: str | None, num_validation: int) -> SplitImages:
    arrays: dict[str, Any]
    if name in _EMBEDDED:
        embedded = load_arrays(name)
        arrays = {"train": embedded.train, "test": embedded.test}
        properties = {"num_values": embedded.num_values, "flip": embedded.flip}
        labels = {"train": embedded.train_labels, "test": embedded.test_labels}
        _check_condition(name, condition, [] if embedded.num_classes is None else ["label"])
        if condition is not None:
            arrays = {part: (images, labels[part]) for part, images in arrays.items()}
            properties["num_classes"] = embedded.num_classes
    else:
        _check_condition(name, condition, ["label"])
        arrays, properties = load_array_file(name, labels=condition is not None), {}
        if condition is not None:
            largest = max(labels.max() for _, labels in arrays.values())
            properties["num_classes"] = int(largest) + 1
    splits = check_split(name, split, tuple(arrays), num_validation)
    if num_validation and split != "test":
        train = arrays["train"]
        rest, held_out = hold_out(len(tf.nest.flatten(train)[0]), num_validation)
        for part, chosen in (("train", rest), ("validation", held_out)):
            arrays[part] = tf.nest.map_structure(lambda array, rows=chosen: array[rows], train)
    return SplitImages(arrays[split], splits, _evaluation_split(arrays), **properties)


def _from_folder(
    folder: pathlib.Path,
    split: str,
    condition: str | None,
    num_validation: int,
    image_size: int | None,
    on_error: Literal["raise", "skip"],
) -> SplitImages:
    _check_condition(str(folder), condition, ["label"])
    paths = image_folder.list_images(folder)
    labels, num_classes = {}, None
    if condition is not None:
        labels, num_classes = image_folder.class_labels(folder, paths)
    evaluation_split = _evaluation_split(paths)
    first = paths["train"][0]
    splits = check_split(str(folder), split, tuple(paths), num_validation)
    if num_validation:
        rest, held_out = hold_out(len(paths["train"]), num_validation)
        for by_split in filter(None, [paths, labels]):
            by_split["validation"] = [by_split["train"][i] for i in held_out]
            by_split["train"] = [by_split["train"][i] for i in rest]
    source = image_folder.folder_source(
        paths[split],
        first=first,
        labels=labels.get(split),
        image_size=image_size,
        on_error=on_error,
    )
    return SplitImages(source, splits, evaluation_split, num_classes=num_classes)


def _from_tfds(
    name: str,
    split: str,
    condition: str | None,
    num_validation: int,
    image_size: int | None,
    data_dir: str | None,
    download: bool,
    shuffle_buffer: int,
) -> SplitImages:
    builder = tfds_source.find_builder(name, data_dir, download)
    spec = tfds_source.spec_of(name, builder, image_size)
    if spec.tfds_name.startswith("imagenet_resized"):
        logging.log_first_n(
            logging.WARNING,
            "imagenet_resized is not the downsampled ImageNet of the paper (imagenet32 and "
            "imagenet64). Bits/dim on the two are not comparable.",
            1,
        )
    # A dataset outside `DATASETS` has no splits before it is prepared; `tfds_source` then raises.
    splits = check_split(name, split, spec.splits, num_validation) if spec.splits else ()
    found = tfds_condition.conditions_of(builder.info.features)
    _check_condition(name, condition, found)
    feature = None if condition is None else found[condition]
    source = tfds_source.tfds_source(
        spec,
        builder,
        split,
        condition=feature,
        num_validation=num_validation,
        shuffle_buffer=shuffle_buffer,
    )
    return SplitImages(
        source,
        splits,
        spec.evaluation_split,
        flip=spec.flip,
        num_classes=None if feature is None else feature.num_classes,
        conditional_event_shape=None if feature is None else feature.event_shape,
    )


def _check_condition(name: str, condition: str | None, stored: Collection[str]) -> None:
    if condition is not None and condition not in stored:
        raise ValueError(
            f"Expected a condition of {name!r} in {[*stored, 'gray']}, got {condition!r}."
        )


def _evaluation_split(splits: dict[str, object]) -> str:
    return next((split for split in ("test", "validation") if split in splits), "train")
