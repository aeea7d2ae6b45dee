"""Batches of a dataset by name."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, Literal

import tensorflow as tf

from tfp_realnvp.data.array_file import array_images
from tfp_realnvp.data.batches import BatchPlan, array_batches
from tfp_realnvp.data.dataset_spec import find_spec
from tfp_realnvp.data.image_folder import folder_images
from tfp_realnvp.data.image_source import ImageSource, read_arrays, stream_batches
from tfp_realnvp.data.load_arrays import EMBEDDED
from tfp_realnvp.data.tfds_source import tfds_images
from tfp_realnvp.internal.tf_data import PARALLEL_CALLS, PREFETCHED_BATCHES, without_autotune

__all__ = ["ImageBatches", "load"]


@dataclasses.dataclass(frozen=True, eq=False)
class ImageBatches:
    """Batches of a split and the properties of the dataset.

    Attributes:
      name: name of the dataset.
      split: name of the split.
      dataset: a `tf.data.Dataset` of `uint8` tensors `[batch_size, H, W, C]`, or, with a condition,
        of tuples of such images and their conditions.
      image_shape: shape `(H, W, C)` of one image.
      num_values: number of pixel levels. Pixels are integers in `[0, num_values)`.
      num_images: number of images in the split, over all shards; `None` if it is unknown.
      steps_per_epoch: number of batches in an epoch of this shard; `None` if it is unknown.
      flip: whether images are mirrored at random in training.
      splits: names of all splits.
      evaluation_split: the split to report bits/dim on, as in the paper for its datasets.
      num_classes: number of classes, if the conditions are labels; an argument of `RealNVPImage`.
      conditional_event_shape: shape of the condition of an image, if conditions are vectors or
        images; an argument of `RealNVPImage`.
    """

    name: str
    split: str
    dataset: tf.data.Dataset
    image_shape: tuple[int, int, int]
    num_values: int
    num_images: int | None
    steps_per_epoch: int | None
    flip: bool
    splits: tuple[str, ...]
    evaluation_split: str
    num_classes: int | None = None
    conditional_event_shape: tuple[int, ...] | None = None


def load(
    name: str,
    *,
    batch_size: int,
    split: str = "train",
    training: bool = False,
    flip: bool | None = None,
    condition: str | None = None,
    image_size: int | None = None,
    num_validation: int = 0,
    seed: int = 0,
    epoch: int = 0,
    step: int = 0,
    num_epochs: int | None = None,
    num_shards: int = 1,
    shard_index: int = 0,
    data_dir: str | None = None,
    download: bool = False,
    on_error: Literal["raise", "skip"] = "raise",
    cache_bytes: int = 2**30,
    shuffle_buffer: int = 10_000,
    deterministic: bool = True,
) -> ImageBatches:
    """Loads a dataset.

    | name                                       | images      | splits            | flips |
    | ------------------------------------------ | ----------- | ----------------- | ----- |
    | `cifar10`                                  | [32, 32, 3] | train, test       | yes   |
    | `imagenet32`, `imagenet64`                 | by name     | train, validation | no    |
    | `imagenet_resized/32x32`, `/64x64`         | by name     | train, validation | no    |
    | `celeb_a`                                  | [64, 64, 3] | train, validation, test | yes |
    | `lsun/bedroom`, `/tower`, `/church_outdoor` | [64, 64, 3] | train, validation | yes  |
    | `mnist`                                    | [28, 28, 1] | train, test       | no    |
    | another name in TensorFlow Datasets        | its `image` | its own           | no    |
    | `digits`, `photos`                         | see `load_arrays` | train, test | no, yes |
    | an `.npz` or `.npy` file                   | see `load_array_file` | its own | no    |
    | a folder of PNG and JPEG files             | see `list_images` | its own     | no    |

    Warning: `imagenet32` and `imagenet64` are the original downsampled datasets (van den Oord et
    al., 2016), which the paper used. `imagenet_resized` are datasets that ImageNet released later.
    They were downsampled by another method and are smoother and easier to compress, so that
    bits/dim on the two are not comparable.

    Training batches are full, shuffled and, depending on the dataset, flipped and randomly cropped,
    and continue epoch after epoch. A batch depends only on `seed`, its epoch and its step within
    the epoch, not on `tf.random.set_seed`: to resume a run that stopped after step k of epoch e,
    pass `epoch=e, step=k`. Without `training` there is one pass over all images in order, with
    central crops and without flips.

    With a `condition`, batches are tuples of images and their conditions, as `FlowModel.fit` takes
    them for a `RealNVPImage` with the same `num_classes` or `conditional_event_shape`:

    | condition | of | conditions |
    | --- | --- | --- |
    | `label` | `digits`, `.npz` files with labels, folders of one subfolder a class | int32 [B] |
    | a feature of TensorFlow Datasets | a `ClassLabel`, such as `label` of `cifar10` | int32 [B] |
    | | numbers, such as `attributes` of `celeb_a` | float32 [B, K], sorted by name |
    | `gray` | color images; their luminance in [0, 1] | float32 [B, H, W, 1] |

    Flips and crops do not change labels and vectors.

    Args:
      name: a name, file or folder, see the table.
      batch_size: number of images in a batch.
      split: `'train'`, `'validation'` or `'test'`; see the table for those of each dataset.
      training: whether the batches are for training and not for evaluation. Evaluation on the
        training split is possible.
      flip: whether to mirror each image with probability 1/2 in training. `None` means the default
        in the table.
      condition: name of the condition, see the table; `None` for images only.
      image_size: height and width for a folder, or for a TensorFlow Datasets name that is not in
        the table. The smaller side is resized to it and the center is cropped. `None` leaves images
        unchanged.
      num_validation: number of training images that are moved from `'train'` to a new split
        `'validation'`, the same ones on every call. Only for datasets without such a split. (The
        patches of `photos` overlap, so that validation on them is close to training.)
      seed: seed of order and augmentation, in [0, 2³¹).
      epoch: epoch to start at, in training.
      step: step to start at within this epoch, in training.
      num_epochs: number of epochs, in training; `None` means unlimited.
      num_shards: number of workers that each load a part of each step's images. With a
        `tf.distribute.InputContext`, pass its `num_input_pipelines`, and as `batch_size` the result
        of its `get_per_replica_batch_size`. With the default, 1, `tf.distribute` shards the data
        itself by elements.
      shard_index: index of this worker; the `input_pipeline_id` of a `tf.distribute.InputContext`.
      data_dir: data directory of TensorFlow Datasets; `None` means its default.
      download: whether to download data that are missing in `data_dir`.
      on_error: whether a damaged image in a folder raises an error or is skipped with a warning.
      cache_bytes: datasets that need at most this much memory are decoded once, in this call.
        Larger ones, and training with random crops, read and decode images anew in each epoch. The
        order of an epoch differs between the two.
      shuffle_buffer: size of the shuffle buffer, in encoded images, for data of TensorFlow Datasets
        that are not in memory. Their files are read in random order, too.
      deterministic: `False` allows images and batches to change places when one is slow, for speed.

    Returns:
      `ImageBatches`.

    Raises:
      ValueError: if the dataset or split is unknown, an argument is out of range, the data have a
        wrong dtype, shape or format, or there is no such condition.
      FileNotFoundError: if the data are missing. The message contains the command that downloads
        them.
      ImportError: if TensorFlow Datasets or scikit-learn is needed and not installed.

    #### Example

    >>> from tfp_realnvp import data
    >>> digits = data.load("digits", batch_size=100, training=True)
    >>> digits.dataset.element_spec
    TensorSpec(shape=(100, 8, 8, 1), dtype=tf.uint8, name=None)
    >>> digits.num_images, digits.steps_per_epoch, digits.num_values
    (1500, 15, 17)
    >>> test = data.load("digits", batch_size=100, split="test")
    >>> [len(batch) for batch in test.dataset]
    [100, 100, 97]
    >>> labeled = data.load("digits", batch_size=100, condition="label")
    >>> images, labels = next(iter(labeled.dataset))
    >>> images.shape, labels.shape, labels.dtype, labeled.num_classes
    (TensorShape([100, 8, 8, 1]), TensorShape([100]), tf.int32, 10)

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, section 4.1.
    van den Oord, Kalchbrenner, Kavukcuoglu: Pixel recurrent neural networks, section 5.
    """
    plan = BatchPlan(
        batch_size=batch_size,
        training=training,
        seed=seed,
        epoch=epoch,
        step=step,
        num_epochs=num_epochs,
        num_shards=num_shards,
        shard_index=shard_index,
    )
    is_gray = condition == "gray"
    common: dict[str, Any] = {"num_validation": num_validation}
    common["condition"] = None if is_gray else condition
    path = pathlib.Path(name)
    if name and name not in EMBEDDED and find_spec(name) is None and path.is_dir():
        selected = folder_images(path, split, image_size=image_size, on_error=on_error, **common)
    elif name in EMBEDDED or path.suffix in (".npy", ".npz"):
        if image_size is not None:
            raise ValueError(f"Expected no image_size for {name!r}, whose image size is fixed.")
        selected = array_images(name, split, **common)
    else:
        selected = tfds_images(
            name,
            split,
            image_size=image_size,
            data_dir=data_dir,
            download=download,
            shuffle_buffer=shuffle_buffer,
            **common,
        )
    flip = selected.flip if flip is None else flip
    plan = dataclasses.replace(plan, flip=flip)
    images = selected.images
    if isinstance(images, ImageSource):
        num_images, image_shape = images.num_images, images.image_shape
        random = training and images.augment is not None
        if not random and images.num_bytes <= cache_bytes:
            images = read_arrays(images)
    else:
        array = tf.nest.flatten(images)[0]
        num_images, image_shape = len(array), array.shape[1:]
    make_batches: Any = stream_batches if isinstance(images, ImageSource) else array_batches
    batches = make_batches(images, plan)
    conditional_event_shape = selected.conditional_event_shape
    if is_gray:
        batches = _with_luminance(batches, name, image_shape)
        conditional_event_shape = (*image_shape[:2], 1)
    return ImageBatches(
        name=name,
        split=split,
        dataset=_finished(batches, deterministic, num_shards),
        image_shape=image_shape,
        num_values=selected.num_values,
        num_images=num_images,
        steps_per_epoch=None if num_images is None else plan.steps_per_epoch(num_images),
        flip=flip,
        splits=selected.splits,
        evaluation_split=selected.evaluation_split,
        num_classes=selected.num_classes,
        conditional_event_shape=conditional_event_shape,
    )


def _with_luminance(
    batches: tf.data.Dataset, name: str, image_shape: tuple[int, ...]
) -> tf.data.Dataset:
    if image_shape[-1] != 3:
        raise ValueError(
            f"Expected color images [H, W, 3] for the condition 'gray', got {name!r} with images "
            f"of shape {image_shape}."
        )
    return batches.map(
        lambda images: (
            images,
            tf.image.rgb_to_grayscale(tf.image.convert_image_dtype(images, tf.float32)),
        ),
        num_parallel_calls=PARALLEL_CALLS,
    )


def _finished(batches: tf.data.Dataset, deterministic: bool, num_shards: int) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = deterministic
    policy = tf.data.experimental.AutoShardPolicy
    options.experimental_distribute.auto_shard_policy = (
        policy.DATA if num_shards == 1 else policy.OFF
    )
    return without_autotune(batches.with_options(options).prefetch(PREFETCHED_BATCHES))
