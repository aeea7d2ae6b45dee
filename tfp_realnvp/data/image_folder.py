"""Folders of PNG and JPEG files."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import re
from typing import Literal

import tensorflow as tf
from absl import logging

from tfp_realnvp.data import preprocessing
from tfp_realnvp.data.image_source import ImageSource
from tfp_realnvp.data.splits import (
    SplitImages,
    check_condition,
    check_split,
    hold_out,
    reported_split,
)

__all__ = ["folder_images", "list_images"]

_SUFFIXES = (".png", ".jpg", ".jpeg")
_SPLITS = ("train", "validation", "test")


def list_images(folder: str | pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Returns the paths of all PNG and JPEG files in a folder and its subfolders, by split.

    If there is a subfolder `train`, the subfolders `train`, `validation` and `test` are the splits.
    Otherwise the files are split at random, identically on every call: one tenth of them is the
    test split.

    Args:
      folder: path of the folder.

    Returns:
      A dictionary from split names to paths in alphabetical order.

    Raises:
      ValueError: if a split has no images, or if there are fewer than two images to split.

    #### Example

    >>> import pathlib, tempfile
    >>> from tfp_realnvp import data
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for name in ("a.png", "b.png", "c.jpg"):
    ...     (folder / name).touch()
    >>> {split: len(paths) for split, paths in data.list_images(folder).items()}
    {'train': 2, 'test': 1}

    """
    folder = pathlib.Path(folder)
    if (folder / "train").is_dir():
        paths = {split: _walk(folder / split) for split in _SPLITS if (folder / split).is_dir()}
    else:
        all_paths = _walk(folder)
        if len(all_paths) < 2:
            raise ValueError(
                f"Expected at least two PNG or JPEG files in {folder}, got {len(all_paths)}."
            )
        train, test = hold_out(len(all_paths), max(1, len(all_paths) // 10))
        paths = {"train": [all_paths[i] for i in train], "test": [all_paths[i] for i in test]}
    for split, names in paths.items():
        if not names:
            raise ValueError(f"Expected PNG or JPEG files in {folder / split}, found none.")
    return paths


def folder_images(
    folder: pathlib.Path,
    split: str,
    *,
    condition: str | None,
    num_validation: int,
    image_size: int | None,
    on_error: Literal["raise", "skip"],
) -> SplitImages:
    """Returns the images of a split of a folder, after decoding each file once as a check.

    The first training image determines the number of channels, 1 or 3, and, without `image_size`,
    the height and width. If the number is 3, grayscale images are converted to RGB. Transparency is
    dropped.

    The arguments and errors are those of `tfp_realnvp.data.load`.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"Expected on_error to be 'raise' or 'skip', got {on_error!r}.")
    check_condition(str(folder), condition, ["label"])
    paths = list_images(folder)
    splits = check_split(str(folder), split, tuple(paths), num_validation)
    first = paths["train"][0]
    labels = None if condition is None else _labels(folder, paths)
    split_paths = paths.get(split)
    if num_validation and split != "test":
        rest, held_out = hold_out(len(paths["train"]), num_validation)
        split_paths = [paths["train"][row] for row in (rest if split == "train" else held_out)]

    shapes = _shapes([first, *split_paths], on_error)
    readable = [path for path in split_paths if path in shapes]
    if len(readable) < len(split_paths):
        logging.warning(
            "Skipped %d of %d images.", len(split_paths) - len(readable), len(split_paths)
        )
    if not readable:
        raise ValueError(f"Expected readable images, got {len(split_paths)} unreadable files.")
    first = first if first in shapes else readable[0]
    height, width, channels = shapes[first]
    channels = 1 if channels <= 2 else 3
    for path in readable:
        if channels == 1 and shapes[path][-1] > 2:
            raise ValueError(f"Expected grayscale images like {first}, got color image {path}.")
        if image_size is None and shapes[path][:2] != (height, width):
            raise ValueError(
                f"Expected images of {height}×{width} pixels like {first}, got {path} of "
                f"{shapes[path][0]}×{shapes[path][1]}. Set image_size to resize and crop images."
            )
    if image_size is not None:
        height = width = image_size
    files = tf.constant([str(path) for path in readable])
    if labels is not None:
        files = files, tf.constant([labels[path] for path in readable], tf.int32)

    def records(seed: tf.Tensor | None) -> tf.data.Dataset:
        dataset = tf.data.Dataset.from_tensor_slices(files)
        return dataset if seed is None else dataset.shuffle(len(readable), seed=seed)

    def prepare(image: tf.Tensor) -> tf.Tensor:
        return image if image_size is None else preprocessing.prepare_square(image, image_size)

    source = ImageSource(
        num_images=len(readable),
        image_shape=(height, width, channels),
        records=records,
        decode=lambda path: preprocessing.decode(tf.io.read_file(path), channels),
        prepare=prepare,
    )
    num_classes = None if labels is None else 1 + max(labels.values())
    return SplitImages(source, splits, reported_split(splits), num_classes=num_classes)


def _labels(folder: pathlib.Path, paths: dict[str, list[pathlib.Path]]) -> dict[pathlib.Path, int]:
    """Returns the label of each image: the position of its class, a subfolder, in the alphabet."""
    are_splits = (folder / "train").is_dir()
    classes = {}
    for split, names in paths.items():
        root = folder / split if are_splits else folder
        for path in names:
            parts = path.relative_to(root).parts
            if len(parts) < 2:
                raise ValueError(
                    f"Expected a subfolder of {root} for each class, for the condition 'label', "
                    f"got the image {path}."
                )
            classes[path] = parts[0]
    labels = {name: label for label, name in enumerate(sorted(set(classes.values())))}
    return {path: labels[name] for path, name in classes.items()}


def _shapes(
    paths: list[pathlib.Path], on_error: Literal["raise", "skip"]
) -> dict[pathlib.Path, tuple[int, int, int]]:
    """Returns the shapes of the images in those files that can be decoded."""

    def shape_or_error(path: pathlib.Path) -> tuple[int, int, int] | str:
        try:
            with tf.device("CPU"):
                return tuple(preprocessing.decode(tf.io.read_file(str(path))).shape)
        except tf.errors.OpError as error:
            # Without the name of the function that TensorFlow puts first.
            return re.sub(r"^\{\{.*?\}\}\s*", "", error.message).splitlines()[0]

    paths = list(dict.fromkeys(paths))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        shapes = dict(zip(paths, pool.map(shape_or_error, paths), strict=True))
    for path, shape in shapes.items():
        if isinstance(shape, str):
            if on_error == "raise":
                raise ValueError(f"Cannot read image {path}: {shape}")
            logging.warning("Skipped image %s: %s", path, shape)
    return {path: shape for path, shape in shapes.items() if not isinstance(shape, str)}


def _walk(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file()
    )
