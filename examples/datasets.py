"""Loads datasets for the scripts: the paper's datasets, preprocessed as in the paper, and others.

| name                                        | images      | splits            | flips |
| ------------------------------------------- | ----------- | ----------------- | ----- |
| `cifar10`                                   | [32, 32, 3] | train, test       | yes   |
| `imagenet32`, `imagenet64`                  | by name     | train, validation | no    |
| `imagenet_resized/32x32`, `/64x64`          | by name     | train, validation | no    |
| `celeb_a`                                   | [64, 64, 3] | train, validation, test | yes |
| `lsun/bedroom`, `/tower`, `/church_outdoor` | [64, 64, 3] | train, validation | yes   |
| `mnist`                                     | [28, 28, 1] | train, test       | no    |
| another name in TensorFlow Datasets         | its `image` | its own           | no    |
| a name or path for `tfr.data.load_arrays`   |             | train, test       |       |

The paper used `imagenet32` and `imagenet64`, the original downsampled datasets (van den Oord et
al., 2016). ImageNet later released `imagenet_resized`, which was downsampled by another method and
is easier to compress: bits/dim on the two are not comparable.

Memory holds each split as PNG or JPEG files, which are decoded batch by batch. A split takes about
12 GB for ImageNet 64, 43 GB for LSUN bedrooms, and 0.02 to 11 GB for other datasets.

Images are downsampled by averaging areas: a pixel is the mean of its rectangle in the source,
rounded to the nearest level. The authors' code downsamples CelebA by bilinear interpolation, which
skips pixels, and blurs LSUN before it downsamples. Bits/dim depend slightly on the method.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

import tfp_realnvp as tfr

# Preparation of one image, uint8 [h, w, C].


def resize(image: tf.Tensor, height: int | tf.Tensor, width: int | tf.Tensor) -> tf.Tensor:
    """Resizes an image by averaging areas."""
    return tf.cast(tf.round(tf.image.resize(image, [height, width], method="area")), tf.uint8)


def resize_smaller_side(image: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes an image so that its smaller side is `size`; keeps the aspect ratio, rounded."""
    height, width = tf.unstack(tf.shape(image)[:2])
    smaller = tf.minimum(height, width)
    return resize(
        image, *((2 * side * size + smaller) // (2 * smaller) for side in (height, width))
    )


def celeb_a(image: tf.Tensor, seed: tf.Tensor | None = None) -> tf.Tensor:
    """Crops rows 40–187 and columns 15–162, and downsamples them to [64, 64, 3]."""
    del seed
    return resize(tf.ensure_shape(image, [218, 178, 3])[40:188, 15:163], 64, 64)


def lsun(image: tf.Tensor, seed: tf.Tensor | None = None) -> tf.Tensor:
    """Resizes the smaller side to 96, and crops to [64, 64, 3], at random if given a seed."""
    image = resize_smaller_side(image, 96)
    if seed is None:
        return tf.image.resize_with_crop_or_pad(image, 64, 64)
    return tf.image.stateless_random_crop(image, [64, 64, 3], seed)


def square(image: tf.Tensor, seed: tf.Tensor | None = None, *, size: int) -> tf.Tensor:
    """Resizes the smaller side to `size` and returns the central square."""
    del seed
    return tf.image.resize_with_crop_or_pad(resize_smaller_side(image, size), size, size)


def unchanged(image: tf.Tensor, seed: tf.Tensor | None = None) -> tf.Tensor:
    del seed
    return image


class Recipe(NamedTuple):
    """A dataset of TensorFlow Datasets.

    Attributes:
      image_shape: shape of prepared images.
      tfds_name: name in TensorFlow Datasets.
      splits: names of the splits; the paper reports bits/dim of the second split.
      flip: whether to mirror training images at random.
      prepare: a function that prepares an image; in training, it also takes a seed.
      note: advice on the download.
    """

    image_shape: tuple[int, int, int]
    tfds_name: str
    splits: tuple[str, ...] = ("train", "validation")
    flip: bool = False
    prepare: Callable[..., tf.Tensor] = unchanged
    note: str = ""


def _imagenet(size: int, folder: str, note: str) -> Recipe:
    prepare = functools.partial(square, size=size)
    return Recipe((size, size, 3), f"{folder}/{size}x{size}", prepare=prepare, note=note)


def _lsun(category: str, gigabytes: float) -> Recipe:
    note = f"About {gigabytes} GB. Preparation needs tensorflow-io."
    return Recipe((64, 64, 3), f"lsun/{category}", flip=True, prepare=lsun, note=note)


_ORIGINAL = (
    "The original archives are not always available. imagenet_resized is a different dataset; its "
    "bits/dim are not comparable."
)
_RESIZED = "The archives are on the ImageNet website."
_QUOTA = (
    "About 1.4 GB from a file host with a daily quota. If the download fails, download the archive "
    "and its lists by hand to data_dir/downloads/manual."
)
_THREE = ("train", "validation", "test")
DATASETS = {
    "cifar10": Recipe((32, 32, 3), "cifar10", ("train", "test"), flip=True),
    "imagenet32": _imagenet(32, "downsampled_imagenet", f"About 4 GB. {_ORIGINAL}"),
    "imagenet64": _imagenet(64, "downsampled_imagenet", f"About 12 GB. {_ORIGINAL}"),
    "imagenet_resized/32x32": _imagenet(32, "imagenet_resized", f"About 3.5 GB. {_RESIZED}"),
    "imagenet_resized/64x64": _imagenet(64, "imagenet_resized", f"About 13 GB. {_RESIZED}"),
    "celeb_a": Recipe((64, 64, 3), "celeb_a", _THREE, flip=True, prepare=celeb_a, note=_QUOTA),
    "lsun/bedroom": _lsun("bedroom", 43),
    "lsun/tower": _lsun("tower", 11),
    "lsun/church_outdoor": _lsun("church_outdoor", 2.3),
    "mnist": Recipe((28, 28, 1), "mnist", ("train", "test")),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """The images of a dataset.

    Attributes:
      name: name of the dataset.
      splits: names of the splits.
      evaluation_split: the split to report bits/dim on.
      image_shape: shape `(H, W, C)` of an image.
      num_values: number of gray levels.
      flip: whether to mirror training images at random.
      stored: a function that takes the name of a split and returns the stored images `[N, ...]`
        and, with a stored condition, the conditions `[N, ...]`.
      prepare: a function that takes the stored images of a batch, and a seed or `None`, and returns
        `uint8` images `[B, H, W, C]`.
      condition: name of the condition, or `None`.
      num_classes: number of classes, if the condition is a label.
    """

    name: str
    splits: tuple[str, ...]
    evaluation_split: str
    image_shape: tuple[int, int, int]
    num_values: int
    flip: bool
    stored: Callable[[str], tuple[Any, ...]]
    prepare: Callable[[tf.Tensor, tf.Tensor | None], tf.Tensor]
    condition: str | None = None
    num_classes: int | None = None

    @property
    def conditional_event_shape(self) -> tuple[int, ...] | None:
        """The shape of a condition that is a vector or an image; `None` otherwise."""
        if self.condition is None or self.num_classes is not None:
            return None
        if self.condition == "gray":
            return (*self.image_shape[:2], 1)
        return tuple(self.read("train")[1].shape[1:])

    def read(self, split: str) -> tuple[Any, ...]:
        """Returns the result of `stored` for a split.

        Raises:
          ValueError: if there is no such split.
        """
        if split not in self.splits:
            raise ValueError(
                f"Expected a split of {self.name!r} in {list(self.splits)}, got {split!r}."
            )
        return self.stored(split)

    def num_images(self, split: str) -> int:
        """Returns the number of images of a split."""
        return len(self.read(split)[0])

    def batches(self, split: str, batch_size: int) -> tf.data.Dataset:
        """Yields batches of the images of a split, in order, with their conditions."""
        with tf.device("CPU"):
            stored = tf.data.Dataset.from_tensor_slices(self.read(split))
        return stored.batch(batch_size).map(
            lambda images, *condition: self._example(self.prepare(images, None), *condition),
            num_parallel_calls=tf.data.AUTOTUNE,
        )

    def training_batches(self, batch_size: int, **options: Any) -> tf.data.Dataset:
        """Returns `tfr.data.batches` of training images, prepared and mirrored at random."""

        def augment(stored: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
            images = self.prepare(stored, seed)
            return tf.image.stateless_random_flip_left_right(images, seed) if self.flip else images

        batches = tfr.data.batches(
            *self.read("train"), batch_size=batch_size, augment=augment, **options
        )
        return batches.map(self._example) if self.condition == "gray" else batches

    def _example(self, images: tf.Tensor, *condition: tf.Tensor) -> Any:
        if self.condition == "gray":
            levels = tf.image.convert_image_dtype(images, tf.float32)
            condition = (tf.image.rgb_to_grayscale(levels),)
        return (images, *condition) if condition else images


def load(
    name: str,
    *,
    condition: str | None = None,
    image_size: int | None = None,
    num_validation: int | None = None,
    flip: bool | None = None,
    data_dir: str | None = None,
    download: bool = False,
) -> Images:
    """Loads a dataset.

    Args:
      name: a name or path, see the table above.
      condition: `label`; `gray`, the luminance of color images in [0, 1]; or a feature in
        TensorFlow Datasets: a label, such as `label` of `cifar10`, or numbers, such as `attributes`
        of `celeb_a`, sorted by name.
      image_size: height and width to which the central square of each image is resized; for folders
        and for datasets in TensorFlow Datasets that are not in the table.
      num_validation: number of training images that move to the split `validation`, the same images
        in every call. By default a tenth, at most 1,000, unless the dataset has a validation split.
      flip: whether to mirror training images; by default as in the table.
      data_dir: data directory of TensorFlow Datasets.
      download: whether to download missing data.

    Raises:
      ValueError: if the dataset is unknown, or has no such condition or split.
      FileNotFoundError: if the data are missing.
    """
    path = pathlib.Path(name)
    is_local = name in ("digits", "photos") or path.is_dir() or path.suffix in (".npy", ".npz")
    stored_condition = None if condition == "gray" else condition
    if is_local and name not in DATASETS:
        images = from_arrays(name, stored_condition, image_size, num_validation)
    else:
        images = from_tfds(name, stored_condition, image_size, num_validation, data_dir, download)
    if condition == "gray" and images.image_shape[-1] != 3:
        raise ValueError(
            f"Expected color images for the condition 'gray', got {name!r} with images of shape "
            f"{images.image_shape}."
        )
    if images.num_values > 256:
        raise ValueError(
            f"Expected at most 256 levels, which the scripts can draw, got {images.num_values} of "
            f"{name!r}."
        )
    flip = images.flip if flip is None else flip
    return dataclasses.replace(images, condition=condition, flip=flip)


def from_arrays(
    name: str, condition: str | None, image_size: int | None, num_validation: int | None
) -> Images:
    """Returns the images of `tfr.data.load_arrays`."""
    arrays = tfr.data.load_arrays(name, image_size=image_size)
    known = ["gray"] if arrays.num_classes is None else ["label", "gray"]
    if condition not in (None, *known):
        raise ValueError(f"Expected a condition of {name!r} in {known}, got {condition!r}.")
    if num_validation is None and arrays.validation is None:
        num_validation = min(len(arrays.train) // 10, 1_000)
    if num_validation:
        arrays = arrays.hold_out(num_validation)

    def stored(split: str) -> tuple[Any, ...]:
        images = getattr(arrays, split)
        return (images,) if condition is None else (images, getattr(arrays, f"{split}_labels"))

    return Images(
        name=name,
        splits=("train", "test") if arrays.validation is None else _THREE,
        evaluation_split="test",
        image_shape=arrays.image_shape,
        num_values=arrays.num_values,
        flip=arrays.flip,
        stored=stored,
        prepare=lambda images, seed: images,
        num_classes=None if condition is None else arrays.num_classes,
    )


def from_tfds(
    name: str,
    condition: str | None,
    image_size: int | None,
    num_validation: int | None,
    data_dir: str | None,
    download: bool,
) -> Images:
    """Returns the images of a dataset of TensorFlow Datasets."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        message = (
            f"Loading {name!r} needs TensorFlow Datasets: `pip install '.[datasets]'` in the clone."
        )
        raise ImportError(message) from error
    recipe = DATASETS.get(name)
    try:
        builder = tfds.builder(recipe.tfds_name if recipe else name, data_dir=data_dir)
    except (ValueError, AssertionError) as error:  # unknown or malformed names
        raise ValueError(
            f"Expected a dataset of {['digits', 'photos', *DATASETS]}, another name in TensorFlow "
            f"Datasets, an .npz or .npy file, or an existing folder of images, got {name!r}."
        ) from error
    if download:
        builder.download_and_prepare()
    if recipe is None:
        recipe = recipe_of(name, builder, image_size)
    elif image_size is not None:
        raise ValueError(f"Expected no image_size for {name!r}, whose image size is fixed.")
    if recipe.tfds_name.startswith("imagenet_resized"):
        logging.warning("imagenet_resized is not the downsampled ImageNet of the paper.")
    features = builder.info.features
    if condition is not None and (condition == "image" or condition not in features):
        known = [*(each for each in features if each != "image"), "gray"]
        raise ValueError(f"Expected a condition of {name!r} in {known}, got {condition!r}.")
    wanted = {"image": True, **({condition: True} if condition else {})}
    decoders = tfds.decode.PartialDecoding(wanted, decoders={"image": tfds.decode.SkipDecoding()})
    num_classes = getattr(features[condition], "num_classes", None) if condition else None

    splits = {split: split for split in recipe.splits}
    if num_validation is None and "validation" not in splits:
        stored_splits = builder.info.splits or {}  # missing until the data are prepared
        number = stored_splits["train"].num_examples if "train" in stored_splits else 10_000
        num_validation = min(number // 10, 1_000)
    if num_validation:
        if "validation" in splits:
            raise ValueError(f"Expected a dataset without a validation split, got {name!r}.")
        # The last images are a random choice: TensorFlow Datasets stores images in random order.
        splits["train"] = f"train[:-{num_validation}]"
        splits["validation"] = f"train[-{num_validation}:]"

    @functools.cache
    def stored(split: str) -> tuple[tf.Tensor, ...]:
        try:
            examples = builder.as_dataset(split=splits[split], decoders=decoders)
        except AssertionError as error:  # The data are missing.
            raise FileNotFoundError(
                f"No data of {name!r} in {builder.data_dir_root}; pass --download, or download "
                f"them: tfds.builder({recipe.tfds_name!r}, data_dir=...).download_and_prepare(). "
                f"{recipe.note}".rstrip()
            ) from error
        with tf.device("CPU"):
            example = next(iter(examples.batch(len(examples))))
            if condition is None:
                return (example["image"],)
            if num_classes is not None:
                return example["image"], tf.cast(example[condition], tf.int32)
            parts = [
                tf.reshape(tf.cast(part, tf.float32), [len(part), -1])
                for part in tf.nest.flatten(example[condition])
            ]
            return example["image"], tf.concat(parts, axis=1)

    def prepare(contents: tf.Tensor, seed: tf.Tensor | None) -> tf.Tensor:
        def one(content: tf.Tensor, *seed: tf.Tensor) -> tf.Tensor:
            # `decode_jpeg` also decodes PNG. The default `dct_method` is faster, but makes images
            # darker by one or two levels.
            channels = recipe.image_shape[-1]
            image = tf.io.decode_jpeg(content, channels, dct_method="INTEGER_ACCURATE")
            return tf.ensure_shape(recipe.prepare(image, *seed), recipe.image_shape)

        elements = [contents]
        if seed is not None:
            elements.append(tf.random.experimental.stateless_split(seed, tf.size(contents)))
        return tf.map_fn(
            lambda element: one(*element),
            elements,
            fn_output_signature=tf.TensorSpec(recipe.image_shape, tf.uint8),
        )

    return Images(
        name=name,
        splits=tuple(splits),
        evaluation_split=recipe.splits[:2][-1],
        image_shape=recipe.image_shape,
        num_values=256,
        flip=recipe.flip,
        stored=stored,
        prepare=prepare,
        num_classes=num_classes,
    )


def recipe_of(name: str, builder: Any, image_size: int | None) -> Recipe:
    """Returns the `Recipe` of a dataset of TensorFlow Datasets that is not in `DATASETS`."""
    features = builder.info.features
    shape = features["image"].shape if "image" in features else ()
    if len(shape) != 3 or features["image"].np_dtype != np.uint8:
        raise ValueError(
            f"Expected a dataset with a uint8 feature 'image', got {name!r} with the features "
            f"{dict(features)}."
        )
    options: dict[str, Any] = {}
    if image_size is not None:
        shape = (image_size, image_size, shape[-1])
        options["prepare"] = functools.partial(square, size=image_size)
    if None in shape:
        raise ValueError(f"Expected an image_size for {name!r}, whose image sizes differ.")
    stored = builder.info.splits or ()  # missing until the data are prepared
    others = [split for split in ("test", "validation") if split in stored]
    return Recipe(shape, name, ("train", *others), **options)
