"""Folders of PNG and JPEG files."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
from typing import Literal

import tensorflow as tf
from absl import logging

from tfp_realnvp.data import preprocessing
from tfp_realnvp.data.image_source import ImageSource
from tfp_realnvp.data.splits import hold_out

__all__ = ["class_labels", "folder_source", "list_images"]

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

    >>> import tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for name in ("a.png", "b.png", "c.jpg"):
    ...     (folder / name).touch()
    >>> {split: len(paths) for split, paths in list_images(folder).items()}
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


def class_labels(
    folder: str | pathlib.Path, paths: dict[str, list[pathlib.Path]]
) -> tuple[dict[str, list[int]], int]:
    """Returns the labels of images that are stored in one subfolder for each class.

    The classes are the subfolders of the folder, or of the subfolders of its splits, in
    alphabetical order.

    Args:
      folder: path of the folder.
      paths: the result of `list_images`.

    Returns:
      A dictionary from split names to labels in the order of the paths, and the number of classes.

    Raises:
      ValueError: if an image is not in a subfolder.

    #### Example

    >>> folder = pathlib.Path("images")
    >>> paths = {"train": [folder / "cat" / "1.png", folder / "dog" / "2.png"],
    ...          "test": [folder / "dog" / "3.png"]}
    >>> class_labels(folder, paths)
    ({'train': [0, 1], 'test': [1]}, 2)

    """
    folder = pathlib.Path(folder)
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
    by_split = {split: [labels[classes[path]] for path in names] for split, names in paths.items()}
    return by_split, len(labels)


def folder_source(
    paths: list[pathlib.Path],
    *,
    first: pathlib.Path,
    labels: list[int] | None = None,
    image_size: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
) -> ImageSource:
    """Returns a source of the images in a list of files, after decoding each file once as a check.

    Args:
      paths: paths of the files.
      first: the file that determines the number of channels, 1 or 3, and, without `image_size`, the
        height and width. If the number is 3, grayscale images are converted to RGB. Transparency
        is dropped.
      labels: labels of the images, their conditions; `None` for images only.
      image_size: height and width to which images are resized and cropped. `None` leaves images
        unchanged; all must then have the same size.
      on_error: whether an unreadable or truncated file raises an error (`'raise'`), or is skipped
        with a warning (`'skip'`). A final warning reports the number of skipped files.

    Returns:
      An `ImageSource`.

    Raises:
      ValueError: if `on_error` is not `'raise'` or `'skip'`, if a file cannot be read and
        `on_error` is `'raise'`, if no file can be read, if the image sizes differ without
        `image_size`, or if the first image is grayscale and another is not.

    #### Example

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "image.png"
    >>> tf.io.write_file(str(path), tf.io.encode_png(tf.zeros([8, 6, 3], tf.uint8)))
    >>> source = folder_source([path], first=path)
    >>> source.num_images, source.image_shape
    (1, (8, 6, 3))

    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"Expected on_error to be 'raise' or 'skip', got {on_error!r}.")
    shapes = {}
    candidates = list(dict.fromkeys([first, *paths]))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, found in zip(candidates, pool.map(_shape, candidates), strict=True):
            if isinstance(found, tuple):
                shapes[path] = found
            elif on_error == "raise":
                raise ValueError(f"Cannot read image {path}: {found}")
            else:
                logging.warning("Skipped image %s: %s", path, found)
    readable = [path for path in paths if path in shapes]
    if len(readable) < len(paths):
        logging.warning("Skipped %d of %d images.", len(paths) - len(readable), len(paths))
    if not readable:
        raise ValueError(f"Expected readable images, got {len(paths)} unreadable files.")

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
    stored = tf.constant([str(path) for path in readable])
    if labels is not None:
        label_of = dict(zip(paths, labels, strict=True))
        stored = stored, tf.constant([label_of[path] for path in readable], tf.int32)

    def records(seed: tf.Tensor | None) -> tf.data.Dataset:
        files = tf.data.Dataset.from_tensor_slices(stored)
        return files if seed is None else files.shuffle(len(readable), seed=seed)

    def prepare(image: tf.Tensor) -> tf.Tensor:
        return image if image_size is None else preprocessing.prepare_square(image, image_size)

    return ImageSource(
        num_images=len(readable),
        image_shape=(height, width, channels),
        records=records,
        decode=lambda path: preprocessing.decode(tf.io.read_file(path), channels),
        prepare=prepare,
    )


def _walk(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file()
    )


def _shape(path: pathlib.Path) -> tuple[int, int, int] | str:
    """Returns the shape of the image in a file, or the error message if it cannot be decoded."""
    try:
        with tf.device("CPU"):
            return tuple(preprocessing.decode(tf.io.read_file(str(path))).shape)
    except tf.errors.OpError as error:
        return error.message.splitlines()[0]
