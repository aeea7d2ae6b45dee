"""Images in NumPy files."""

from __future__ import annotations

import contextlib
import pathlib
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfp_realnvp.data.splits import hold_out

__all__ = ["load_array_file"]

_KEYS = {
    "train": ("train_images", "x_train", "train"),
    "validation": ("validation_images", "val_images", "x_validation", "x_val", "validation", "val"),
    "test": ("test_images", "x_test", "test"),
}
_UNSPLIT_KEYS = ("images", "data", "x", "arr_0")
_LABEL_KEYS = {
    "train": ("train_labels", "y_train"),
    "validation": ("validation_labels", "val_labels", "y_validation", "y_val"),
    "test": ("test_labels", "y_test"),
    None: ("labels", "y"),
}


def load_array_file(path: str | pathlib.Path, *, labels: bool = False) -> dict[str, Any]:
    """Loads the images of an `.npy` or `.npz` file.

    An `.npz` file can contain one array for each split: `train_images`, `x_train` or `train`, the
    same with `test`, and optionally the same with `validation` or `val`. Otherwise it contains one
    array named `images`, `data`, `x` or `arr_0` (the default name in `np.savez`). This array, or
    that of an `.npy` file, is split at random, identically on every call: one tenth of the images
    is the test split.

    Labels are arrays of integers from 0, of shape `[N]` or `[N, 1]`: for each split, such as
    `train_labels` or `y_train`, or, beside a single array of images, `labels` or `y`. Other arrays
    are ignored.

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
        these arrays, if an array is not `uint8` or not of shape `[N, H, W, C]`, if labels are
        missing or not as described, or if it contains pickled objects, which are never loaded.

    #### Example

    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "images.npy")
    >>> np.save(path, np.zeros([20, 8, 8, 1], np.uint8))
    >>> {split: images.shape for split, images in load_array_file(path).items()}
    {'train': (18, 8, 8, 1), 'test': (2, 8, 8, 1)}

    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No file {path}.")
    with _reading(path):
        loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        if labels:
            raise ValueError(f"Expected an .npz file for labels beside images, got {path}.")
        return _split(path, _checked(path, path.name, loaded))
    with loaded:
        return _read_archive(path, loaded, labels)


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
    """Adds the path to errors of NumPy and of the decompression."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise ValueError(f"Cannot read {path}: {error}") from error


def _read_archive(
    path: pathlib.Path, archive: np.lib.npyio.NpzFile, labels: bool
) -> dict[str, Any]:
    found = {
        split: next(key for key in keys if key in archive)
        for split, keys in _KEYS.items()
        if any(key in archive for key in keys)
    }
    if found:
        arrays = {split: _read(path, archive, key) for split, key in found.items()}
        shapes = {split: images.shape[1:] for split, images in arrays.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"Expected images of one shape in {path}, got {shapes}.")
        if labels:
            return {
                split: (images, _read_labels(path, archive, split, len(images)))
                for split, images in arrays.items()
            }
        return arrays
    key = next((key for key in _UNSPLIT_KEYS if key in archive), None)
    if key is None:
        known = [*(keys[0] for keys in _KEYS.values()), *_UNSPLIT_KEYS]
        raise ValueError(
            f"Expected an array of images in {path} with one of the names {known}, got "
            f"{list(archive)}."
        )
    images = _read(path, archive, key)
    if not labels:
        return _split(path, images)
    return _split(path, images, _read_labels(path, archive, None, len(images)))


def _read_labels(
    path: pathlib.Path, archive: np.lib.npyio.NpzFile, split: str | None, num_images: int
) -> np.ndarray:
    keys = _LABEL_KEYS[split]
    key = next((key for key in keys if key in archive), None)
    if key is None:
        raise ValueError(
            f"Expected labels in {path} with one of the names {list(keys)}, got {list(archive)}."
        )
    with _reading(path):
        labels = archive[key]
    if labels.shape == (num_images, 1):
        labels = labels[:, 0]
    if labels.shape != (num_images,) or labels.dtype.kind not in "iu" or labels.min() < 0:
        lowest = f" from {labels.min()}" if labels.dtype.kind in "iu" and labels.size else ""
        raise ValueError(
            f"Expected integers from 0 of shape [{num_images}] as {key} in {path}, got "
            f"{labels.dtype}{lowest} of shape {labels.shape}."
        )
    return labels.astype(np.int32)


def _read(path: pathlib.Path, archive: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
    with _reading(path):
        images = archive[key]
    return _checked(path, key, images)


def _checked(path: pathlib.Path, key: str, images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8:
        raise ValueError(f"Expected {key} in {path} of dtype uint8, got {images.dtype}.")
    if images.ndim != 4 or 0 in images.shape:
        hint = " Grayscale images need a last axis of length 1." if images.ndim == 3 else ""
        raise ValueError(
            f"Expected {key} in {path} of shape [N, H, W, C], got {images.shape}.{hint}"
        )
    return images


def _split(
    path: pathlib.Path, images: np.ndarray, labels: np.ndarray | None = None
) -> dict[str, Any]:
    if len(images) < 2:
        raise ValueError(f"Expected at least two images in {path}, got {len(images)}.")
    train, test = hold_out(len(images), max(1, len(images) // 10))
    parts = {"train": train, "test": test}
    if labels is None:
        return {split: images[part] for split, part in parts.items()}
    return {split: (images[part], labels[part]) for split, part in parts.items()}
