"""Images of TensorFlow Datasets."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tfp_realnvp.data import preprocessing
from tfp_realnvp.data.dataset_spec import DATASETS, DatasetSpec, find_spec
from tfp_realnvp.data.image_source import ImageSource
from tfp_realnvp.data.splits import SplitImages, check_condition, check_split, reported_split
from tfp_realnvp.internal.optional_packages import missing_package

__all__ = ["tfds_images"]


@dataclasses.dataclass(frozen=True)
class _Condition:
    """A feature that is the condition of images: a label, or a vector of shape `event_shape`."""

    feature: str
    num_classes: int | None = None
    event_shape: tuple[int] | None = None

    def convert(self, value: Any) -> tf.Tensor:
        """Converts the value of the feature to an int32 label or a float32 vector.

        A dictionary of numbers becomes a vector in the order of the sorted names.
        """
        if self.num_classes is not None:
            return tf.cast(value, tf.int32)
        parts = [tf.reshape(tf.cast(part, tf.float32), [-1]) for part in tf.nest.flatten(value)]
        return tf.ensure_shape(tf.concat(parts, axis=0), self.event_shape)


def tfds_images(
    name: str,
    split: str,
    *,
    condition: str | None,
    num_validation: int,
    image_size: int | None,
    data_dir: str | None,
    download: bool,
    shuffle_buffer: int,
) -> SplitImages:
    """Returns the images of a split of a dataset of TensorFlow Datasets.

    Held-out validation images are the last of the training split, which TensorFlow Datasets stores
    in random order. The arguments and errors are those of `tfp_realnvp.data.load`.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        # Later versions of tensorflow-metadata do not run with TensorFlow 2.18 and 2.19.
        undeclared = "tensorflow-metadata<1.18", "importlib_resources"
        needed_by = f"The dataset {name!r}"
        raise missing_package(needed_by, "tensorflow-datasets", *undeclared) from error
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
    if spec is None:
        spec = _new_spec(name, builder, image_size)
    elif image_size is not None:
        raise ValueError(f"Expected no image_size for {name!r}, whose image size is fixed.")
    if spec.tfds_name.startswith("imagenet_resized"):
        logging.log_first_n(
            logging.WARNING,
            "imagenet_resized is not the downsampled ImageNet of the paper (imagenet32 and "
            "imagenet64). Bits/dim on the two are not comparable.",
            1,
        )
    # A dataset outside `DATASETS` has no splits before it is prepared; `_source` then raises.
    splits = check_split(name, split, spec.splits, num_validation) if spec.splits else ()
    conditions = _conditions(builder.info.features)
    check_condition(name, condition, conditions)
    feature = None if condition is None else conditions[condition]
    return SplitImages(
        _source(spec, builder, split, feature, num_validation, shuffle_buffer),
        splits,
        spec.evaluation_split,
        flip=spec.flip,
        num_classes=None if feature is None else feature.num_classes,
        conditional_event_shape=None if feature is None else feature.event_shape,
    )


def _new_spec(name: str, builder: Any, image_size: int | None) -> DatasetSpec:
    """Returns the specification of a dataset that is not in `DATASETS`, from its features."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    feature = features["image"] if "image" in features else None
    if not isinstance(feature, tfds.features.Image) or feature.np_dtype != np.uint8:
        raise ValueError(
            f"Expected a dataset with a uint8 feature 'image', got {name!r} with the features "
            f"{dict(features)}."
        )
    height, width, channels = feature.shape
    options: dict[str, Any] = {}
    if image_size is not None:
        height = width = image_size
        options["prepare"] = functools.partial(preprocessing.prepare_square, size=image_size)
    if None in (height, width, channels):
        raise ValueError(f"Expected an image_size for {name!r}, whose image sizes differ.")
    splits = tuple(builder.info.splits)
    return DatasetSpec(
        name=name,
        tfds_name=name,
        splits=splits,
        evaluation_split=reported_split(splits),
        image_shape=(height, width, channels),
        **options,
    )


def _conditions(features: Any) -> dict[str, _Condition]:
    """Returns the features that can be conditions, by name: labels, numbers and vectors."""
    import tensorflow_datasets as tfds

    def size(feature: Any) -> int | None:
        """Returns the length of a number or vector; `None` for other features."""
        if not isinstance(feature, tfds.features.Tensor):
            return None
        is_number = np.issubdtype(feature.np_dtype, np.number) or feature.np_dtype == np.bool_
        if not is_number or len(feature.shape) > 1 or None in feature.shape:
            return None
        return int(np.prod(feature.shape))

    conditions = {}
    for name, feature in features.items():
        if isinstance(feature, tfds.features.ClassLabel):
            if feature.num_classes is not None:
                conditions[name] = _Condition(name, num_classes=feature.num_classes)
            continue
        is_dict = isinstance(feature, tfds.features.FeaturesDict)
        sizes = [size(part) for part in (feature.values() if is_dict else [feature])]
        if None not in sizes:
            conditions[name] = _Condition(name, event_shape=(sum(sizes),))
    return conditions


def _source(
    spec: DatasetSpec,
    builder: Any,
    split: str,
    condition: _Condition | None,
    num_validation: int,
    shuffle_buffer: int,
) -> ImageSource:
    import tensorflow_datasets as tfds

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
    except AssertionError as error:  # The data are missing.
        data_dir = builder.data_dir_root
        message = (
            f"No data of {spec.name!r} in {data_dir}. To download them:\n"
            f"python -m tfp_realnvp.data --dataset={spec.name} --data_dir={data_dir} --download"
        )
        raise FileNotFoundError(f"{message}\n{spec.fetch_note}".rstrip()) from error
    return ImageSource(
        num_images=splits[split].num_examples if splits else None,
        image_shape=spec.image_shape,
        records=records,
        decode=lambda content: preprocessing.decode(content, spec.image_shape[-1]),
        prepare=spec.prepare,
        augment=spec.augment,
    )
