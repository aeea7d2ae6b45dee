"""Images in NumPy files."""

from __future__ import annotations

import pathlib
import zipfile
import zlib
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_realnvp.data.load_arrays import EMBEDDED, load_arrays
from tfp_realnvp.data.splits import (
    SplitImages,
    check_condition,
    check_split,
    hold_out,
    reported_split,
)

__all__ = ["array_images", "load_array_file"]

# Names of the arrays of images and of labels, by split.
_KEYS = {
    "train": (["train_images", "x_train", "train"], ["train_labels", "y_train"]),
    "validation": (
        ["validation_images", "x_validation", "validation", "val_images", "x_val", "val"],
        ["validation_labels", "y_validation", "val_labels", "y_val"],
    ),
    "test": (["test_images", "x_test", "test"], ["test_labels", "y_test"]),
}
_UNSPLIT_KEYS = (["images", "arr_0"], ["labels"])


def load_array_file(path: str | pathlib.Path, *, labels: bool = False) -> dict[str, Any]:
    """Loads the images of an `.npy` or `.npz` file.

    | arrays in an `.npz` file | images | labels |
    | --- | --- | --- |
    | one for each split | `train_images`, `x_train` or `train` | `train_labels` or `y_train` |
    | one for all images | `images`, or `arr_0`, the default of `np.savez` | `labels` |

    The splits are `train`, `test` and `validation`, also named `val`. Other arrays are ignored. A
    single array of images, or that of an `.npy` file, is split at random, identically on every
    call: one tenth of the images is the test split.

    Args:
      path: path of the file.
      labels: whether to load labels, too.

    Returns:
      A dictionary from split names, in the order train, validation, test, to `uint8` arrays of
      shape `[N, H, W, C]`, or, with `labels`, to tuples of such an array and an `int32` array of
      shape `[N]`.

    Raises:
      FileNotFoundError: if the file does not exist.
      ValueError: if the file is damaged or not an `.npy` or `.npz` file, if it contains none of
        these arrays, if images are not `uint8` or not of shape `[N, H, W, C]`, if labels are
        missing or not integers from 0 of shape `[N]` or `[N, 1]`, or if one of these arrays
        contains pickled objects, which are never loaded.

    #### Example

    >>> import os, tempfile
    >>> import numpy as np
    >>> from tfp_realnvp import data
    >>> path = os.path.join(tempfile.mkdtemp(), "images.npy")
    >>> np.save(path, np.zeros([20, 8, 8, 1], np.uint8))
    >>> {split: images.shape for split, images in data.load_array_file(path).items()}
    {'train': (18, 8, 8, 1), 'test': (2, 8, 8, 1)}

    """
    path = pathlib.Path(path)
    arrays, names = _read(path, labels)
    parts = {
        split: _images_and_labels(path, arrays, keys, names, labels)
        for split, keys in _KEYS.items()
        if any(key in arrays for key in keys[0])
    }
    if not parts:
        images, integers = _images_and_labels(path, arrays, _UNSPLIT_KEYS, names, labels)
        if len(images) < 2:
            raise ValueError(f"Expected at least two images in {path}, got {len(images)}.")
        rows = hold_out(len(images), max(1, len(images) // 10))
        parts = {
            split: (images[part], integers[part] if labels else None)
            for split, part in zip(("train", "test"), rows, strict=True)
        }
    shapes = {split: images.shape[1:] for split, (images, _) in parts.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"Expected images of one shape in {path}, got {shapes}.")
    return parts if labels else {split: images for split, (images, _) in parts.items()}


def array_images(
    name: str, split: str, *, condition: str | None, num_validation: int
) -> SplitImages:
    """Returns the images of a split of a dataset of scikit-learn or of an array file.

    The arguments and errors are those of `tfp_realnvp.data.load`.
    """
    parts: dict[str, Any]
    properties: dict[str, Any] = {}
    if name in EMBEDDED:
        arrays = load_arrays(name)
        check_condition(name, condition, [] if arrays.num_classes is None else ["label"])
        properties = {"num_values": arrays.num_values, "flip": arrays.flip}
        parts = {"train": arrays.train, "test": arrays.test}
        if condition is not None:
            labels = {"train": arrays.train_labels, "test": arrays.test_labels}
            parts = {part: (images, labels[part]) for part, images in parts.items()}
    else:
        check_condition(name, condition, ["label"])
        parts = load_array_file(name, labels=condition is not None)
    if condition is not None:
        properties["num_classes"] = 1 + int(max(labels.max() for _, labels in parts.values()))
    splits = check_split(name, split, tuple(parts), num_validation)
    if num_validation and split != "test":
        train = parts["train"]
        rest, held_out = hold_out(len(tf.nest.flatten(train)[0]), num_validation)
        rows = rest if split == "train" else held_out
        parts[split] = tf.nest.map_structure(lambda array: array[rows], train)
    return SplitImages(parts[split], splits, reported_split(splits), **properties)


def _read(path: pathlib.Path, labels: bool) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the arrays that can be images or labels, and the names of all arrays of a file."""
    if not path.is_file():
        raise FileNotFoundError(f"No file {path}.")
    known = {
        key
        for image_keys, label_keys in (*_KEYS.values(), _UNSPLIT_KEYS)
        for key in (image_keys + label_keys if labels else image_keys)
    }
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"images": loaded}, ["images"]
        with loaded:
            return {key: loaded[key] for key in loaded if key in known}, loaded.files
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise ValueError(f"Cannot read {path}: {error}") from error


def _images_and_labels(
    path: pathlib.Path,
    arrays: dict[str, np.ndarray],
    keys: tuple[list[str], list[str]],
    names: list[str],
    with_labels: bool,
) -> tuple[np.ndarray, np.ndarray | None]:
    image_keys, label_keys = keys
    key = next((key for key in image_keys if key in arrays), None)
    if key is None:
        known = [*(keys[0] for keys, _ in _KEYS.values()), *image_keys]
        raise ValueError(
            f"Expected an array of images in {path} with one of the names {known}, got {names}."
        )
    images = arrays[key]
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        hint = " Grayscale images need a last axis of length 1." if images.ndim == 3 else ""
        raise ValueError(
            f"Expected {key} in {path} of dtype uint8 and shape [N, H, W, C], got {images.dtype} "
            f"of shape {images.shape}.{hint}"
        )
    if not with_labels:
        return images, None
    key = next((key for key in label_keys if key in arrays), None)
    if key is None:
        raise ValueError(
            f"Expected labels in {path}, an .npz file with one of the arrays {label_keys}, got "
            f"{names}."
        )
    labels = arrays[key]
    if labels.shape == (len(images), 1):
        labels = labels[:, 0]
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or labels.min() < 0:
        lowest = f" from {labels.min()}" if labels.dtype.kind in "iu" and labels.size else ""
        raise ValueError(
            f"Expected integers from 0 of shape [{len(images)}] as {key} in {path}, got "
            f"{labels.dtype}{lowest} of shape {labels.shape}."
        )
    return images, labels.astype(np.int32)
