"""Images of TensorFlow Datasets."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfp_realnvp.data import preprocessing
from tfp_realnvp.data.dataset_spec import DATASETS, DatasetSpec, find_spec
from tfp_realnvp.data.image_source import ImageSource
from tfp_realnvp.data.tfds_condition import TfdsCondition
from tfp_realnvp.data.tfds_package import import_tfds

__all__ = ["find_builder", "spec_of", "tfds_source"]


def find_builder(name: str, data_dir: str | None = None, download: bool = False) -> Any:
    """Returns the `tfds.core.DatasetBuilder` of a dataset.

    Args:
      name: a name in `DATASETS` or in TensorFlow Datasets.
      data_dir: data directory of TensorFlow Datasets; `None` means its default.
      download: whether to download and prepare data that are missing in `data_dir`.

    Raises:
      ImportError: if TensorFlow Datasets is not installed.
      ValueError: if the name is unknown.

    #### Example

    >>> find_builder("imagenet32").info.full_name
    'downsampled_imagenet/32x32/2.0.0'

    """
    tfds = import_tfds()
    spec = find_spec(name)
    try:
        builder = tfds.builder(name if spec is None else spec.tfds_name, data_dir=data_dir)
    except (ValueError, AssertionError) as error:  # unknown or malformed names
        names = [spec.name for spec in DATASETS]
        raise ValueError(
            f"Expected a dataset of {names}, 'digits', 'photos', another name in TensorFlow "
            f"Datasets, an .npz or .npy file, or an existing folder of images, got {name!r}."
        ) from error
    if download:
        builder.download_and_prepare()
    return builder


def spec_of(name: str, builder: Any, image_size: int | None = None) -> DatasetSpec:
    """Returns the entry of a dataset in `DATASETS`, or a new one with the features of its builder.

    Args:
      name: name of the dataset.
      builder: its builder.
      image_size: for a dataset that is not in `DATASETS`, the height and width to which images are
        resized and cropped. `None` leaves images unchanged; all must then have the same size.

    Raises:
      ValueError: if the dataset has no `uint8` feature `'image'`, if its image sizes differ and
        there is no `image_size`, or if there is one for a dataset in `DATASETS`.

    #### Example

    >>> spec_of("svhn_cropped", find_builder("svhn_cropped")).image_shape
    (32, 32, 3)

    """
    spec = find_spec(name)
    if spec is not None:
        if image_size is not None:
            raise ValueError(f"Expected no image_size for {name!r}, whose image size is fixed.")
        return spec
    features = builder.info.features
    feature = features["image"] if "image" in features else None
    if not isinstance(feature, import_tfds().features.Image) or feature.np_dtype != np.uint8:
        raise ValueError(
            f"Expected a dataset with a uint8 feature 'image', got {name!r} with the features "
            f"{dict(features)}."
        )
    height, width, channels = feature.shape
    splits = tuple(builder.info.splits)
    prepare = DatasetSpec.prepare
    if image_size is not None:
        height = width = image_size

        def prepare(image: tf.Tensor) -> tf.Tensor:
            return preprocessing.prepare_square(image, image_size)

    if None in (height, width, channels):
        raise ValueError(f"Expected an image_size for {name!r}, whose image sizes differ.")
    return DatasetSpec(
        name=name,
        tfds_name=name,
        splits=splits,
        evaluation_split=next((s for s in ("test", "validation") if s in splits), "train"),
        image_shape=(height, width, channels),
        prepare=prepare,
    )


def tfds_source(
    spec: DatasetSpec,
    builder: Any,
    split: str,
    *,
    condition: TfdsCondition | None = None,
    num_validation: int = 0,
    shuffle_buffer: int = 10_000,
) -> ImageSource:
    """Returns the images of a split, with their conditions if there is a `condition`.

    Args:
      spec: the preparation of the images.
      builder: builder of the dataset.
      split: `'train'`, `'validation'`, ...
      condition: the feature that is the condition; `None` for images only.
      num_validation: number of images at the end of the training split that are held out as the
        split `'validation'`. (TensorFlow Datasets writes images in random order.)
      shuffle_buffer: size of the shuffle buffer, in encoded images. Files are read in random order.

    Returns:
      An `ImageSource`.

    Raises:
      FileNotFoundError: if the data are missing. The message contains the command that downloads
        them.
      ValueError: if there are at most `num_validation` training images.
    """
    tfds = import_tfds()
    if num_validation:
        split = {
            "train": f"train[:-{num_validation}]",
            "validation": f"train[-{num_validation}:]",
        }.get(split, split)
    features = {"image": True} if condition is None else {"image": True, condition.feature: True}
    decoders = tfds.decode.PartialDecoding(features, decoders={"image": tfds.decode.SkipDecoding()})

    def record(example: dict[str, Any]) -> Any:
        if condition is None:
            return example["image"]
        return example["image"], condition.convert(example[condition.feature])

    def records(seed: tf.Tensor | None) -> tf.data.Dataset:
        examples = builder.as_dataset(
            split=split,
            shuffle_files=seed is not None,
            decoders=decoders,
            read_config=tfds.ReadConfig(shuffle_seed=seed, try_autocache=False, skip_prefetch=True),
        )
        encoded = examples.map(record)
        return encoded if seed is None else encoded.shuffle(shuffle_buffer, seed=seed)

    splits = builder.info.splits
    if num_validation and "train" in splits:
        num_train = splits["train"].num_examples
        if num_validation >= num_train:
            raise ValueError(
                f"Expected num_validation less than {num_train}, the number of training images of "
                f"{spec.name!r}, got {num_validation}."
            )
    try:
        records(None)
    except AssertionError as error:
        raise FileNotFoundError(_missing(spec, builder)) from error
    return ImageSource(
        num_images=splits[split].num_examples if splits else None,
        image_shape=spec.image_shape,
        records=records,
        decode=lambda content: preprocessing.decode(content, spec.image_shape[-1]),
        prepare=spec.prepare,
        augment=spec.augment,
    )


def _missing(spec: DatasetSpec, builder: Any) -> str:
    data_dir = builder.data_dir_root
    message = (
        f"No data of {spec.name!r} in {data_dir}. To download them:\n"
        f"python -m tfp_realnvp.data --dataset={spec.name} --data_dir={data_dir} --download"
    )
    return f"{message}\n{spec.fetch_note}" if spec.fetch_note else message
