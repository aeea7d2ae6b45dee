"""Datasets that are installed with scikit-learn, as arrays in memory."""

from __future__ import annotations

import dataclasses

import numpy as np

from tfp_realnvp.internal.optional_packages import missing_package

__all__ = ["EMBEDDED", "ImageArrays", "load_arrays"]

EMBEDDED = ("digits", "photos")

_NUM_TRAIN_DIGITS = 1500
# Of the 640 columns of a photograph, 448 are for training, 32 (one patch) are skipped, and 160 are
# for the test.
_TRAIN_COLUMNS = slice(0, 448)
_TEST_COLUMNS = slice(480, 640)
_PATCH_SIZE = 32


@dataclasses.dataclass(frozen=True, eq=False)
class ImageArrays:
    """The training and test images of a dataset.

    Attributes:
      name: name of the dataset.
      train: `uint8` array of shape `[N, H, W, C]`.
      test: `uint8` array of shape `[M, H, W, C]`.
      num_values: number of pixel levels. Pixels are integers in `[0, num_values)`.
      flip: whether an image and its mirror image are equally likely, so that random horizontal
        flips are a valid augmentation.
      num_classes: number of classes; `None` without labels.
      train_labels: `int32` array of shape `[N]`, with values in `[0, num_classes)`.
      test_labels: `int32` array of shape `[M]`.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    num_values: int
    flip: bool
    num_classes: int | None = None
    train_labels: np.ndarray | None = None
    test_labels: np.ndarray | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape `(H, W, C)` of one image."""
        return self.train.shape[1:]


def load_arrays(name: str) -> ImageArrays:
    """Loads a dataset that is part of scikit-learn. Every call returns the same arrays.

    | name     | images      | levels | train  | test | flips | classes |
    | -------- | ----------- | ------ | ------ | ---- | ----- | ------- |
    | `digits` | [8, 8, 1]   | 17     | 1,500  | 297  | no    | 10      |
    | `photos` | [32, 32, 3] | 256    | 13,440 | 450  | yes   | none    |

    `digits` are handwritten digits with levels from 0 (background) to 16, split at random.

    `photos` are patches of two photographs, a temple and a flower, in random order. Training
    patches come from the left 448 columns of each photograph, one at every fifth pixel in both
    directions. Test patches come from the right 160 columns, one at every sixteenth pixel. The 32
    columns in between are not used, so that training and test patches share no pixel. Because
    patches overlap and come from only two photographs, bits/dim on them can be compared between
    models, but not with those on other data.

    Args:
      name: `'digits'` or `'photos'`.

    Returns:
      `ImageArrays`, with `uint8` images of shape `[N, H, W, C]`.

    Raises:
      ValueError: if the name is unknown.
      ImportError: if scikit-learn is not installed, or, for `'photos'`, Pillow.

    #### Example

    >>> from tfp_realnvp import data
    >>> digits = data.load_arrays("digits")
    >>> digits.train.shape, digits.train.dtype, digits.train_labels.shape
    ((1500, 8, 8, 1), dtype('uint8'), (1500,))

    """
    if name not in EMBEDDED:
        raise ValueError(f"Expected a dataset of {list(EMBEDDED)}, got {name!r}.")
    try:
        from sklearn import datasets
    except ImportError as error:
        raise missing_package(f"The dataset {name!r}", "scikit-learn") from error
    rng = np.random.default_rng(0)
    if name == "digits":
        digits = datasets.load_digits()
        order = rng.permutation(len(digits.images))
        images = digits.images[order].astype(np.uint8)[..., np.newaxis]
        labels = digits.target[order].astype(np.int32)
        train, test = slice(_NUM_TRAIN_DIGITS), slice(_NUM_TRAIN_DIGITS, None)
        return ImageArrays(
            name, images[train], images[test], 17, False, 10, labels[train], labels[test]
        )
    photographs = datasets.load_sample_images().images
    train = [_patches(photograph[:, _TRAIN_COLUMNS], 5) for photograph in photographs]
    test = [_patches(photograph[:, _TEST_COLUMNS], 16) for photograph in photographs]
    train, test = (rng.permutation(np.concatenate(patches)) for patches in (train, test))
    return ImageArrays(name, train, test, num_values=256, flip=True)


def _patches(image: np.ndarray, stride: int) -> np.ndarray:
    """Returns the patches `[N, 32, 32, C]` of an image `[H, W, C]`, row by row."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (_PATCH_SIZE, _PATCH_SIZE), (0, 1))
    patches = np.moveaxis(windows[::stride, ::stride], 2, -1)
    return patches.reshape(-1, *patches.shape[2:])
