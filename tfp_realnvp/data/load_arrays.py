"""Loads images as arrays: by name, from NumPy files, and from folders of PNG and JPEG files."""

import concurrent.futures
import dataclasses
import functools
import pathlib
import zipfile
import zlib
from typing import Any

import numpy as np

from tfp_realnvp.internal import optional_packages, validation

# Maps a split's name to images [N, H, W, C], and labels [N] or `None`.
_Splits = dict[str, tuple[np.ndarray, np.ndarray | None]]

_NAMES = ("train", "validation", "test")
_SUFFIXES = (".png", ".jpg", ".jpeg")
_PATCH_SIZE = 32
# For each split, columns of a photograph, and the stride of patches in pixels. A gap of one patch
# width separates the splits.
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

    def __repr__(self) -> str:
        """Describes arrays by dtype and shape."""
        texts = []
        for name, value in vars(self).items():
            is_array = isinstance(value, np.ndarray)
            text = f"{value.dtype} {[*value.shape]}" if is_array else repr(value)
            texts.append(f"{name}={text}")
        return f"{type(self).__name__}({', '.join(texts)})"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape `(H, W, C)` of one image."""
        return self.train.shape[1:]

    def hold_out(self, num_images: int) -> "ImageArrays":
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
        rest, held_out = _held_out(len(self.train), num_images)
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
    only to compare models with each other, not with results on other datasets.

    Arrays in files are `uint8` or `uint16` of shape `[N, H, W, C]`. A `validation` array is
    optional. Without `train` and `test`, a random tenth of the images, the same on every call, is
    the test split. For a folder, the function applies the EXIF orientation, drops transparency, and
    converts gray images to RGB if other images have colors. 16-bit grayscale PNG files become
    `uint16`. For files, `num_values` is the least power of two above the largest gray level, at
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
        splits = _read_folder(path, image_size)
    elif path.suffix in (".npy", ".npz"):
        splits = _read_array_file(path)
    else:
        raise ValueError(
            f"Expected {' or '.join(map(repr, _EMBEDDED))}, an .npz or .npy file, or an existing "
            f"folder of images, got {name!r}."
        )
    return _arrays(name, splits)


def _arrays(
    name: str, splits: _Splits, num_values: int | None = None, flip: bool = False
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
    splits = {"train": (images[:1500], labels[:1500]), "test": (images[1500:], labels[1500:])}
    return _arrays("digits", splits, num_values=17)


def _photos() -> ImageArrays:
    photographs = np.stack(_scikit_learn("photos").load_sample_images().images)
    rng = np.random.default_rng(0)
    splits: _Splits = {}
    for split, (columns, stride) in _PHOTO_SPLITS.items():
        windows = np.lib.stride_tricks.sliding_window_view(
            photographs[:, :, columns], (_PATCH_SIZE, _PATCH_SIZE), axis=(1, 2)
        )
        patches = np.moveaxis(windows[:, ::stride, ::stride], 3, -1)
        splits[split] = rng.permutation(patches.reshape(-1, *patches.shape[3:])), None
    return _arrays("photos", splits, num_values=256, flip=True)


_EMBEDDED = {"digits": _digits, "photos": _photos}


def _scikit_learn(name: str) -> Any:
    return optional_packages.load("sklearn.datasets", f"The dataset {name!r}", "scikit-learn")


def _held_out(num_images: int, num_held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits image indices randomly, but reproducibly, into two parts."""
    expected = f"Expected to hold out at least 1 and fewer than all of {num_images} images"
    validation.require(0 < num_held_out < num_images, expected, num_held_out)
    order = np.random.default_rng(0).permutation(num_images)
    return np.sort(order[num_held_out:]), np.sort(order[:num_held_out])


def _read_array_file(path: pathlib.Path) -> _Splits:
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
    expected = f"Expected an array named images, or arrays named train and test, in {path}"
    validation.require("images" in arrays, expected, list(arrays))
    images, labels = _checked(path, arrays, "images", "labels" if "labels" in arrays else None)
    train, test = _held_out(len(images), max(1, len(images) // 10))
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
        train, test = _held_out(len(files), max(1, len(files) // 10))
        paths = {"train": [files[i] for i in train], "test": [files[i] for i in test]}
    for name, files in paths.items():
        validation.require(bool(files), f"Expected PNG or JPEG files in {folder / name}", files)
    return paths


def _walk(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())


def _read_folder(folder: pathlib.Path, image_size: int | None) -> _Splits:
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
    # The class of an image is the first folder below the folder of its split.
    folders = [path.relative_to(folder).parts[has_splits:-1] for path in paths]
    if all(folders):
        labels = np.unique([names[0] for names in folders], return_inverse=True)[1].astype(np.int32)
    starts = np.cumsum([len(files) for files in by_split.values()])[:-1]
    parts = np.split(images, starts)
    of_parts = [None] * len(parts) if labels is None else np.split(labels, starts)
    return dict(zip(by_split, zip(parts, of_parts, strict=True), strict=True))


def _read(path: pathlib.Path, image_size: int | None) -> np.ndarray:
    """Reads an image file as `uint8` [h, w, 1] or [h, w, 3], or `uint16` [h, w, 1]."""
    pillow = optional_packages.load("PIL.Image", "A folder of images", "pillow")
    operations = optional_packages.load("PIL.ImageOps", "A folder of images", "pillow")
    try:
        with pillow.open(path) as image:
            if image.mode != "I;16" and "16B" in str(image.tile):
                raise ValueError("Pillow reads 8 of its 16 bits; store it as uint16 in an .npz")
            upright = operations.exif_transpose(image)
        if upright.mode not in ("L", "RGB", "I;16"):
            upright = upright.convert("L" if upright.mode in ("1", "LA") else "RGB")
        if image_size is not None:
            # Pillow's `BOX` filter would weight pixels unevenly if one size is not a multiple of
            # the other.
            upright = operations.fit(upright, (image_size, image_size), pillow.Resampling.HAMMING)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"Cannot read image {path}: {error}.") from error
    pixels = np.asarray(upright)
    return pixels if pixels.ndim == 3 else pixels[..., np.newaxis]
