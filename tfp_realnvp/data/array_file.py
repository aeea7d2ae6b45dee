"""Images in NumPy's files."""

from __future__ import annotations

import contextlib
import pathlib
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np

from tfp_realnvp.data.splits import hold_out

__all__ = ["load_array_file"]

_KEYS = {
    "train": ("train_images", "x_train", "train"),
    "validation": ("validation_images", "val_images", "x_validation", "x_val", "validation", "val"),
    "test": ("test_images", "x_test", "test"),
}
_KEYS_OF_ALL = ("images", "data", "x", "arr_0")


def load_array_file(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Loads the images of an `.npy` or `.npz` file.

    An `.npz` file may have an array for each split: `train_images`, `x_train` or `train`, and
    likewise for test and, optionally, validation (also `val`). Otherwise it has one array,
    `images`, `data`, `x` or `arr_0` (the name that `np.savez` gives), which is divided, as an
    `.npy` file's is, at random but always in the same way: a tenth is the test split. Other
    arrays, such as labels, are not read.

    Args:
      path: name of the file.

    Returns:
      By split, in the order train, validation, test, `uint8` arrays of shape `[N, H, W, C]`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is no such file or is damaged, it has none of these arrays, or one of
        another dtype or shape; or it has pickled objects, which are never loaded.

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
        return _divide(path, _checked(path, path.name, loaded))
    with loaded:
        return _read_archive(path, loaded)


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
    """Names the file in whatever NumPy and the decompression have to say about it."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise ValueError(f"Cannot read {path}: {error}") from error


def _read_archive(path: pathlib.Path, archive: np.lib.npyio.NpzFile) -> dict[str, np.ndarray]:
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
        return arrays
    key = next((key for key in _KEYS_OF_ALL if key in archive), None)
    if key is None:
        known = [*(keys[0] for keys in _KEYS.values()), *_KEYS_OF_ALL]
        raise ValueError(
            f"Expected an array of images in {path} under one of the names {known}, got the names "
            f"{list(archive)}."
        )
    return _divide(path, _read(path, archive, key))


def _read(path: pathlib.Path, archive: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
    with _reading(path):
        images = archive[key]
    return _checked(path, key, images)


def _checked(path: pathlib.Path, key: str, images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8:
        raise ValueError(f"Expected {key} in {path} of dtype uint8, got {images.dtype}.")
    if images.ndim != 4 or 0 in images.shape:
        hint = " Grey images need a last axis of length 1." if images.ndim == 3 else ""
        raise ValueError(
            f"Expected {key} in {path} of shape [N, H, W, C], got {images.shape}.{hint}"
        )
    return images


def _divide(path: pathlib.Path, images: np.ndarray) -> dict[str, np.ndarray]:
    if len(images) < 2:
        raise ValueError(f"Expected at least two images in {path} to divide, got {len(images)}.")
    train, test = hold_out(len(images), max(1, len(images) // 10))
    return {"train": images[train], "test": images[test]}
