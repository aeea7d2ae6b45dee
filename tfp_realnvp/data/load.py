"""The one way in: batches of any data set, by name."""

from __future__ import annotations

import dataclasses
from typing import Literal

import tensorflow as tf

from tfp_realnvp.data.array_batches import array_batches
from tfp_realnvp.data.batch_plan import BatchPlan
from tfp_realnvp.data.find_images import find_images
from tfp_realnvp.data.image_source import ImageSource, read_array, stream_batches

__all__ = ["ImageBatches", "load"]


@dataclasses.dataclass(frozen=True, eq=False)
class ImageBatches:
    """Batches of a data set, and what a model or a script needs to know about it.

    Attributes:
      name: the data set's name.
      split: the split's name.
      dataset: a `tf.data.Dataset` of `uint8` tensors `[batch_size, H, W, C]`.
      image_shape: the shape `(H, W, C)` of one image.
      num_values: number of levels of a pixel; pixels are integers in `[0, num_values)`.
      num_images: number of images of the split, over all shards; `None` if it is not known.
      steps_per_epoch: number of batches of an epoch; `None` if it is not known.
      flip: whether images are mirrored at random in training.
      splits: the names of all splits.
      evaluation_split: the split to report bits/dim on; for the paper's data sets the paper's.
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


def load(
    name: str,
    *,
    batch_size: int,
    split: str = "train",
    training: bool = False,
    flip: bool | None = None,
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
    """Loads a data set.

    | name                                       | images      | splits            | flips |
    | ------------------------------------------ | ----------- | ----------------- | ----- |
    | `cifar10`                                  | [32, 32, 3] | train, test       | yes   |
    | `imagenet32`, `imagenet64`                 | by its name | train, validation | no    |
    | `imagenet_resized/32x32`, `/64x64`         | by its name | train, validation | no    |
    | `celeb_a`                                  | [64, 64, 3] | train, validation, test | yes |
    | `lsun/bedroom`, `/tower`, `/church_outdoor` | [64, 64, 3] | train, validation | yes  |
    | `mnist`                                    | [28, 28, 1] | train, test       | no    |
    | another of tensorflow-datasets             | its `image` | its own           | no    |
    | `digits`, `photos`                         | see `load_arrays` | train, test | no, yes |
    | an `.npz` or `.npy` file                   | see `load_array_file` | its own | no    |
    | a folder of PNG and JPEG files             | see `list_images` | its own     | no    |

    Warning: `imagenet32` and `imagenet64` are the original down-sampled sets (van den Oord et al.,
    2016), which the paper used. `imagenet_resized` are the sets that ImageNet released later, made
    by another method, smoother and easier to compress: bits/dim on one say nothing about the other.

    In training, batches are full, shuffled, flipped and randomly cropped as the data set has it,
    and go on epoch after epoch. What a batch holds depends on `seed`, the epoch and the step in
    it alone (not on `tf.random.set_seed`): a run that was stopped after step k of epoch e goes on
    with `epoch=e, step=k`. Without `training` there is one pass over all images in order, with
    central crops and without flips.

    Args:
      name: as in the table.
      batch_size: number of images in a batch.
      split: `'train'`, `'validation'` or `'test'`, as the data set has it.
      training: whether the batches are for training rather than for evaluation, which may be on
        the training split.
      flip: whether to mirror half of the images in training; `None` is as in the table.
      image_size: height and width for a folder, or for another data set of tensorflow-datasets:
        the smallest side is resized to it, and the centre taken. `None` keeps images as they are.
      num_validation: number of training images that make up the split `'validation'`, and are
        left out of `'train'`, always the same ones; for a data set that has no such split. (The
        patches of `photos` overlap, so that this tells little there.)
      seed: of order and augmentation, in [0, 2³¹).
      epoch: the epoch to start at, in training.
      step: number of the step to start at in this epoch, in training.
      num_epochs: number of epochs, in training; `None` goes on forever.
      num_shards: number of workers that load parts of each step's images. With a
        `tf.distribute.InputContext` this is `num_input_pipelines`, and `batch_size` what its
        `get_per_replica_batch_size` returns. Left at 1, `tf.distribute` divides the data itself,
        by elements.
      shard_index: this worker's number, `input_pipeline_id`.
      data_dir: folder of tensorflow-datasets' data; `None` is its default.
      download: whether to fetch what `data_dir` does not have.
      on_error: whether a damaged image in a folder is an error, or skipped with a warning.
      cache_bytes: prepared images that need no more memory than this are decoded once, here;
        others, and those with random crops, are read and decoded anew in each epoch. Epochs'
        orders differ between the two.
      shuffle_buffer: number of encoded images among which the next is drawn, for data of
        tensorflow-datasets that are not in memory. The order of their files is random, too.
      deterministic: `False` lets a slow image or batch be overtaken, for speed.

    Returns:
      `ImageBatches`.

    Raises:
      ValueError: unknown data set or split, an argument out of range, or data of a wrong dtype,
        shape or format.
      FileNotFoundError: the data are absent; the message says which command fetches them.
      ImportError: tensorflow-datasets or scikit-learn is needed and not installed.

    #### Example

    >>> digits = load("digits", batch_size=100, training=True)
    >>> digits.dataset.element_spec
    TensorSpec(shape=(100, 8, 8, 1), dtype=tf.uint8, name=None)
    >>> digits.num_images, digits.steps_per_epoch, digits.num_values
    (1500, 15, 17)
    >>> test = load("digits", batch_size=100, split="test")
    >>> [len(batch) for batch in test.dataset]
    [100, 100, 97]

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
    found = find_images(
        name,
        split,
        num_validation=num_validation,
        image_size=image_size,
        on_error=on_error,
        data_dir=data_dir,
        download=download,
        shuffle_buffer=shuffle_buffer,
    )
    flip = found.flip if flip is None else flip
    plan = dataclasses.replace(plan, flip=flip)
    images = found.images
    if isinstance(images, ImageSource):
        num_images, image_shape = images.num_images, images.image_shape
        random = training and images.augment is not None
        if not random and images.num_bytes <= cache_bytes:
            images = read_array(images)
    else:
        num_images, image_shape = len(images), images.shape[1:]
    batches = stream_batches if isinstance(images, ImageSource) else array_batches
    return ImageBatches(
        name=name,
        split=split,
        dataset=_finished(batches(images, plan), deterministic, num_shards),
        image_shape=image_shape,
        num_values=found.num_values,
        num_images=num_images,
        steps_per_epoch=None if num_images is None else plan.steps_per_epoch(num_images),
        flip=flip,
        splits=found.splits,
        evaluation_split=found.evaluation_split,
    )


def _finished(batches: tf.data.Dataset, deterministic: bool, num_shards: int) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = deterministic
    policy = tf.data.experimental.AutoShardPolicy
    options.experimental_distribute.auto_shard_policy = (
        policy.DATA if num_shards == 1 else policy.OFF
    )
    return batches.with_options(options).prefetch(tf.data.AUTOTUNE)
