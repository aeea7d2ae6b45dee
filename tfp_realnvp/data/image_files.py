"""Reads images from NumPy files, and from folders of PNG and JPEG files."""

from __future__ import annotations

import concurrent.futures
import functools
import pathlib
import zipfile
import zlib

import numpy as np

from tfp_realnvp.internal import validation
from tfp_realnvp.internal.optional_packages import optional_module

# Split name -> images [N, H, W, C], and labels [N] or `None`.
Splits = dict[str, tuple[np.ndarray, np.ndarray | None]]

_NAMES = ("train", "validation", "test")
_SUFFIXES = (".png", ".jpg", ".jpeg")


def hold_out(num_images: int, num_held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits image indices into training and held-out ones, at random with a fixed seed."""
    expected = f"Expected to hold out at least 1 and fewer than all of {num_images} images"
    validation.require(0 < num_held_out < num_images, expected, num_held_out)
    order = np.random.default_rng(0).permutation(num_images)
    return np.sort(order[num_held_out:]), np.sort(order[:num_held_out])


def read_array_file(path: pathlib.Path) -> Splits:
    """Reads an `.npy` or `.npz` file; see `load_arrays`."""
    try:
        loaded = np.load(path)
        arrays = {"images": loaded}
        if not isinstance(loaded, np.ndarray):
            with loaded:
                arrays = dict(loaded)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise ValueError(f"Cannot read {path}: {error}.") from error
    if "train" in arrays and "test" in arrays:
        names = {name: f"{name}_labels" for name in _NAMES if name in arrays}
        has_labels = not arrays.keys().isdisjoint(names.values())
        return {
            name: _checked(path, arrays, name, labels if has_labels else None)
            for name, labels in names.items()
        }
    expected = f"Expected the arrays train and test, or images, in {path}"
    validation.require("images" in arrays, expected, list(arrays))
    images, labels = _checked(path, arrays, "images", "labels" if "labels" in arrays else None)
    train, test = hold_out(len(images), max(1, len(images) // 10))
    return {
        name: (images[rows], None if labels is None else labels[rows])
        for name, rows in (("train", train), ("test", test))
    }


def _checked(
    path: pathlib.Path, arrays: dict[str, np.ndarray], name: str, labels_name: str | None
) -> tuple[np.ndarray, np.ndarray | None]:
    images = arrays[name]
    if images.dtype not in (np.uint8, np.uint16) or images.ndim != 4 or 0 in images.shape:
        hint = " Grayscale images need a last axis of length 1." if images.ndim == 3 else ""
        raise ValueError(
            f"Expected {name} in {path} of dtype uint8 or uint16 and shape [N, H, W, C], got "
            f"{images.dtype} of shape {images.shape}.{hint}"
        )
    if labels_name is None:
        return images, None
    labels = np.asarray(arrays.get(labels_name))
    is_valid = labels.shape == images.shape[:1] and labels.dtype.kind in "iu" and labels.min() >= 0
    expected = f"Expected non-negative integers of shape [{len(images)}] as {labels_name} in {path}"
    validation.require(is_valid, expected, labels)
    return images, labels.astype(np.int32)


def list_images(folder: str | pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Returns the sorted paths of all PNG and JPEG files below a folder, by split.

    The splits are the subfolders `train`, `test` and, if it exists, `validation`. Without a
    subfolder `train`, a random tenth of the files, the same on every call, is the test split.
    `load_arrays` reads the files in this order.

    Raises:
      ValueError: if a split has no images, or there are fewer than two images to split.

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
        names = [n for n in _NAMES if n != "validation" or (folder / n).is_dir()]
        paths = {name: _walk(folder / name) for name in names}
    else:
        files = _walk(folder)
        expected = f"Expected at least two PNG or JPEG files in {folder}"
        validation.require(len(files) > 1, expected, len(files))
        train, test = hold_out(len(files), max(1, len(files) // 10))
        paths = {"train": [files[i] for i in train], "test": [files[i] for i in test]}
    for name, files in paths.items():
        validation.require(bool(files), f"Expected PNG or JPEG files in {folder / name}", files)
    return paths


def _walk(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file()
    )


def read_folder(folder: pathlib.Path, image_size: int | None) -> Splits:
    """Reads all images of a folder; see `load_arrays`."""
    by_split = list_images(folder)
    paths = [path for paths in by_split.values() for path in paths]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        pixels = list(pool.map(functools.partial(_read, image_size=image_size), paths))
    channels = max(image.shape[-1] for image in pixels)
    first = pixels[0]
    for path, image in zip(paths, pixels, strict=True):
        if image.dtype != first.dtype or image.shape[:2] != first.shape[:2]:
            expected, got = (f"{a.shape[0]}×{a.shape[1]} {a.dtype}" for a in (first, image))
            raise ValueError(
                f"Expected images of one size and dtype, {expected} like {paths[0]}, got {path} of "
                f"{got}. load_arrays(..., image_size=) resizes and crops images."
            )
    images = np.stack([np.broadcast_to(image, (*first.shape[:2], channels)) for image in pixels])
    has_splits, labels = (folder / "train").is_dir(), None
    # The class is the first folder below the split.
    folders = [path.relative_to(folder).parts[has_splits:-1] for path in paths]
    if all(folders):
        classes = [names[0] for names in folders]
        labels = np.unique(classes, return_inverse=True)[1].astype(np.int32)
    starts = np.cumsum([len(files) for files in by_split.values()])[:-1]
    parts = np.split(images, starts)
    of_parts = [None] * len(parts) if labels is None else np.split(labels, starts)
    return dict(zip(by_split, zip(parts, of_parts, strict=True), strict=True))


def _read(path: pathlib.Path, image_size: int | None) -> np.ndarray:
    """Reads an image file as `uint8` [h, w, 1] or [h, w, 3], or `uint16` [h, w, 1]."""
    pillow = optional_module("PIL.Image", "A folder of images", "pillow")
    operations = optional_module("PIL.ImageOps", "A folder of images", "pillow")
    try:
        with pillow.open(path) as image:
            if image.mode != "I;16" and "16B" in str(image.tile):
                raise ValueError(
                    "Pillow reads 8 of its 16 bits; store such images as uint16 in an .npz file"
                )
            upright = operations.exif_transpose(image)
        if upright.mode not in ("L", "RGB", "I;16"):
            upright = upright.convert("L" if upright.mode in ("1", "LA") else "RGB")
        if image_size is not None:
            # `BOX` would weight pixels unevenly if one size is not a multiple of the other.
            upright = operations.fit(upright, (image_size, image_size), pillow.Resampling.HAMMING)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"Cannot read image {path}: {error}.") from error
    pixels = np.asarray(upright)
    return pixels if pixels.ndim == 3 else pixels[..., np.newaxis]
