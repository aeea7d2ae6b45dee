"""Loads images as arrays."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np

from tfp_realnvp.data.image_files import Splits, hold_out, read_array_file, read_folder
from tfp_realnvp.internal import validation
from tfp_realnvp.internal.optional_packages import optional_module

_NUM_TRAIN_DIGITS = 1500
_PATCH_SIZE = 32
# Columns of a photograph, and the stride of its patches. The splits are one patch width apart.
_PHOTO_SPLITS = {"train": (slice(0, 448), 5), "test": (slice(480, 640), 16)}


@dataclasses.dataclass(frozen=True, eq=False)
class ImageArrays:
    """The images of a dataset.

    Attributes:
      name: the argument of `load_arrays`.
      train, test, validation: `uint8` or `uint16` arrays of shape `[N, H, W, C]`; `validation` may
        be `None`.
      num_values: number of gray levels; pixels are integers in `[0, num_values)`.
      flip: whether random horizontal flips are a valid augmentation.
      num_classes: number of classes; `None` without labels.
      train_labels, test_labels, validation_labels: `int32` arrays of shape `[N]` with values in
        `[0, num_classes)`, or `None`.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    num_values: int
    flip: bool
    num_classes: int | None = None
    train_labels: np.ndarray | None = None
    test_labels: np.ndarray | None = None
    validation: np.ndarray | None = None
    validation_labels: np.ndarray | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape `(H, W, C)` of one image."""
        return self.train.shape[1:]

    def hold_out(self, num_images: int) -> ImageArrays:
        """Moves random training images, the same on every call, to the validation split.

        Patches of `photos` overlap, so their validation split resembles the training split.

        #### Example

        >>> from tfp_realnvp import data
        >>> digits = data.load_arrays("digits").hold_out(150)
        >>> len(digits.train), len(digits.validation), len(digits.test)
        (1350, 150, 297)

        Raises:
          ValueError: if a validation split exists, or no training image would remain.
        """
        expected = "Expected a dataset without a validation split"
        validation.require(self.validation is None, expected, self.name)
        rest, held_out = hold_out(len(self.train), num_images)
        labels = self.train_labels
        return dataclasses.replace(
            self,
            train=self.train[rest],
            train_labels=None if labels is None else labels[rest],
            validation=self.train[held_out],
            validation_labels=None if labels is None else labels[held_out],
        )


def load_arrays(name: str | pathlib.Path, *, image_size: int | None = None) -> ImageArrays:
    """Loads images by name or from files. Repeated calls return equal arrays.

    | name | images | train | test | levels | flips | classes |
    | --- | --- | --- | --- | --- | --- | --- |
    | `digits` | [8, 8, 1] | 1,500 | 297 | 17 | no | 10 |
    | `photos` | [32, 32, 3] | 13,440 | 450 | 256 | yes | none |
    | an `.npz` file | `train`, `test` | their own | their own | below | no | `train_labels`, … |
    | an `.npz` file | `images` | nine tenths | a tenth | below | no | `labels` |
    | an `.npy` file | its array | nine tenths | a tenth | below | no | none |
    | a folder | PNG and JPEG files | `list_images` | `list_images` | below | no | subfolders |

    `digits` are scikit-learn's digits with levels from 0 (background) to 16, split at random.

    `photos` are overlapping patches of two photographs, a temple and a flower, in random order.
    Training patches start at every fifth pixel of the left 448 columns, test patches at every
    sixteenth pixel of the right 160 columns, so the splits share no pixel. Use bits/dim on `photos`
    only to compare models, not to compare with other datasets.

    Arrays in files are `uint8` or `uint16` of shape `[N, H, W, C]`. A `validation` array is
    optional. Without `train` and `test`, a random tenth of the images, the same on every call, is
    the test split. For a folder, the function applies the EXIF orientation, drops transparency, and
    converts gray images to RGB if other images have colors. 16-bit grayscale PNG files become
    `uint16`. Their number of levels is the smallest power of two above the largest level, and at
    least 256.

    If all images are in subfolders of the folder, or of its `train` and `test`, these subfolders
    are the classes, in alphabetical order. For images that do not fit into memory, use
    `keras.utils.image_dataset_from_directory`; see the documentation page on images.

    Args:
      name: `'digits'`, `'photos'`, or the path of an `.npz` file, an `.npy` file or a folder.
      image_size: height and width for the images of a folder: Pillow's Hamming filter resizes the
        central square of each image. `None` leaves images unchanged.

    Raises:
      ValueError: if the name is unknown; if an array has a wrong name, dtype or shape; if an image
        is damaged or has 16-bit colors; if images of a folder differ in bit depth, or in size
        without `image_size`.
      ImportError: if scikit-learn or Pillow is needed, but not installed.

    #### Example

    >>> from tfp_realnvp import data
    >>> digits = data.load_arrays("digits")
    >>> digits.train.shape, digits.train.dtype, digits.train_labels.shape
    ((1500, 8, 8, 1), dtype('uint8'), (1500,))
    """
    name, path = str(name), pathlib.Path(name)
    is_folder = name not in _EMBEDDED and path.is_dir()
    expected = "Expected image_size only for a folder of images"
    validation.require(is_folder or image_size is None, expected, name)
    if name in _EMBEDDED:
        return _EMBEDDED[name]()
    if is_folder:
        splits = read_folder(path, image_size)
    elif path.suffix in (".npy", ".npz"):
        splits = read_array_file(path)
    else:
        raise ValueError(
            f"Expected {' or '.join(map(repr, _EMBEDDED))}, an .npz or .npy file, or an existing "
            f"folder of images, got {name!r}."
        )
    return _arrays(name, splits)


def _arrays(
    name: str, splits: Splits, num_values: int | None = None, flip: bool = False
) -> ImageArrays:
    shapes = {split: images.shape[1:] for split, (images, _) in splits.items()}
    expected = f"Expected images of one shape in {name}"
    validation.require(len(set(shapes.values())) == 1, expected, shapes)
    if num_values is None:
        largest = max(int(images.max()) for images, _ in splits.values())
        num_values = max(256, 1 << largest.bit_length())
    labels = [labels for _, labels in splits.values() if labels is not None]
    return ImageArrays(
        name=name,
        num_values=num_values,
        flip=flip,
        num_classes=1 + max(int(part.max()) for part in labels) if labels else None,
        **{split: images for split, (images, _) in splits.items()},
        **{f"{split}_labels": labels for split, (_, labels) in splits.items()},
    )


def _digits() -> ImageArrays:
    digits = _scikit_learn("digits").load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    images = digits.images[order].astype(np.uint8)[..., np.newaxis]
    labels = digits.target[order].astype(np.int32)
    parts = {"train": slice(_NUM_TRAIN_DIGITS), "test": slice(_NUM_TRAIN_DIGITS, None)}
    splits = {split: (images[part], labels[part]) for split, part in parts.items()}
    return _arrays("digits", splits, num_values=17)


def _photos() -> ImageArrays:
    photographs = _scikit_learn("photos").load_sample_images().images
    rng = np.random.default_rng(0)
    splits: Splits = {}
    for split, (columns, stride) in _PHOTO_SPLITS.items():
        patches = [_patches(photograph[:, columns], stride) for photograph in photographs]
        splits[split] = rng.permutation(np.concatenate(patches)), None
    return _arrays("photos", splits, num_values=256, flip=True)


_EMBEDDED = {"digits": _digits, "photos": _photos}


def _scikit_learn(name: str) -> Any:
    return optional_module("sklearn.datasets", f"The dataset {name!r}", "scikit-learn")


def _patches(image: np.ndarray, stride: int) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(image, (_PATCH_SIZE, _PATCH_SIZE), (0, 1))
    patches = np.moveaxis(windows[::stride, ::stride], 2, -1)
    return patches.reshape(-1, *patches.shape[2:])
