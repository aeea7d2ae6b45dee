"""The datasets of the paper, with random images from the mock data of TensorFlow Datasets."""

import io

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image

from tfp_realnvp.data import load
from tfp_realnvp.data.dataset_spec import DATASETS

_NUM_IMAGES = 10
_CASES = {
    # name: (name in TensorFlow Datasets, image shape, flip, splits, evaluation split)
    "cifar10": ("cifar10", (32, 32, 3), True, "train test", "test"),
    "imagenet32": ("downsampled_imagenet/32x32", (32, 32, 3), False, "train validation", None),
    "imagenet64": ("downsampled_imagenet/64x64", (64, 64, 3), False, "train validation", None),
    "imagenet_resized/32x32": (None, (32, 32, 3), False, "train validation", None),
    "imagenet_resized/64x64": (None, (64, 64, 3), False, "train validation", None),
    "celeb_a": ("celeb_a", (64, 64, 3), True, "train validation test", None),
    "lsun/bedroom": (None, (64, 64, 3), True, "train validation", None),
    "lsun/tower": (None, (64, 64, 3), True, "train validation", None),
    "lsun/church_outdoor": (None, (64, 64, 3), True, "train validation", None),
    "mnist": (None, (28, 28, 1), False, "train test", "test"),
    "svhn_cropped": (None, (32, 32, 3), False, None, None),
}
_KINDS = ("cifar10", "imagenet64", "celeb_a", "lsun/tower", "svhn_cropped")
_NAMES = [*_KINDS, *ft.full(*(name for name in _CASES if name not in _KINDS))]
_LSUN = [name for name in _CASES if name.startswith("lsun")]


@pytest.fixture(scope="module", autouse=True)
def _mock_data():
    with tfds.testing.mock_data(num_examples=_NUM_IMAGES):
        yield


@pytest.fixture(scope="module", params=_NAMES)
def training(request, _mock_data):
    """The name of a dataset, its `ImageBatches` for training, and the batches of six epochs."""
    image_data = load(request.param, batch_size=4, training=True, seed=3)
    return request.param, image_data, [batch.numpy() for batch in image_data.dataset.take(12)]


def _batches(name, count=None, **kwargs):
    dataset = load(name, batch_size=4, **kwargs).dataset
    return [batch.numpy() for batch in (dataset if count is None else dataset.take(count))]


def _original_images(name):
    # Mock images depend on the requested features.
    decoders = tfds.decode.PartialDecoding(
        {"image": True}, decoders={"image": tfds.decode.SkipDecoding()}
    )
    examples = tfds.builder(name).as_dataset(split="train", decoders=decoders)
    images = [np.asarray(Image.open(io.BytesIO(e["image"].numpy()))) for e in examples]
    return [image if image.ndim == 3 else image[..., np.newaxis] for image in images]


def _average(image, height, width):
    """Area averages from the exact integral of the image, piecewise linear along each axis."""
    for axis, size in ((0, height), (1, width)):
        image = np.moveaxis(image.astype(float), axis, 0)
        old = len(image)
        integral = np.concatenate([np.zeros([1, *image.shape[1:]]), np.cumsum(image, 0)])
        edges = np.arange(size + 1) * old / size
        low = np.minimum(edges.astype(int), old - 1)
        part = (edges - low).reshape(-1, *[1] * (image.ndim - 1))
        at_edges = integral[low] + part * image[low]
        image = np.moveaxis(np.diff(at_edges, axis=0) * size / old, 0, axis)
    return image


def _prepared(name, image, size):
    if name == "celeb_a":
        return _average(image[40:188, 15:163], 64, 64)
    if name in _LSUN or "imagenet" in name:
        smallest = 96 if name in _LSUN else size
        scaled = [int(side * smallest / min(image.shape[:2]) + 0.5) for side in image.shape[:2]]
        image = _average(image, *scaled)
        top, left = ((side - size) // 2 for side in scaled)
        return image[top : top + size, left : left + size]
    return image


def test_the_table_is_complete():
    assert {spec.name for spec in DATASETS} == set(_CASES) - {"svhn_cropped"}


def test_shapes_splits_and_flips(training):
    name, image_data, batches = training
    tfds_name, image_shape, flip, splits, evaluation_split = _CASES[name]
    assert (image_data.name, image_data.split) == (name, "train")
    assert (image_data.image_shape, image_data.num_values, image_data.flip) == (
        image_shape,
        256,
        flip,
    )
    assert image_data.dataset.element_spec == tf.TensorSpec([4, *image_shape], tf.uint8)
    if splits is not None:
        assert image_data.splits == tuple(splits.split())
        assert image_data.evaluation_split == (evaluation_split or "validation")
    assert all(batch.shape == (4, *image_shape) for batch in batches)
    values = np.stack(batches)
    assert values.dtype == np.uint8 and values.min() < 60 and values.max() > 190
    if tfds_name is not None:
        np.testing.assert_array_equal(batches[:4], _batches(tfds_name, 4, training=True, seed=3))


@pytest.mark.parametrize("name", _NAMES)
def test_evaluation_images_are_the_prepared_originals(name):
    tfds_name, image_shape, _, _, _ = _CASES[name]
    split = load(name, batch_size=4).evaluation_split
    batches = _batches(name, split=split)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    images = np.concatenate(batches).astype(int)
    originals = _original_images(tfds_name or name)
    expected = [_prepared(name, original, image_shape[0]) for original in originals]
    assert np.abs(images - np.rint(np.array(expected, float))).max() <= 1
    np.testing.assert_array_equal(np.concatenate(_batches(name, split=split)), images)


def test_training_epochs(training):
    name, _, batches = training
    resumed = _batches(name, 4, training=True, seed=3, epoch=1)
    np.testing.assert_array_equal(resumed, batches[2:6])
    epochs = [np.concatenate(batches[i : i + 2]) for i in (0, 2, 4)]
    assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()


def test_batches_depend_on_the_seed():
    batches = [_batches("cifar10", 2, training=True, seed=seed) for seed in (3, 4)]
    assert (np.stack(batches[0]) != np.stack(batches[1])).any()


def test_flips(training):
    name, image_data, batches = training
    plain = np.concatenate(_batches(name, 12, training=True, flip=False, seed=3))
    flipped = np.concatenate(batches)
    mirrored = (flipped == plain[:, :, ::-1]).all(axis=(1, 2, 3))
    unchanged = (flipped == plain).all(axis=(1, 2, 3))
    assert (mirrored ^ unchanged).all()
    assert 12 <= mirrored.sum() <= 36 if image_data.flip else not mirrored.any()
    np.testing.assert_array_equal(
        np.where(mirrored[:, None, None, None], flipped[:, :, ::-1], flipped), plain
    )


@pytest.mark.parametrize("name", _LSUN[:1])
def test_crops_are_random_only_in_training(name):
    crops = np.concatenate(_batches(name, 20, training=True, flip=False))
    central = np.concatenate(_batches(name))
    assert len(np.unique(crops, axis=0)) > 3 * len(central)


def test_the_warning_about_imagenet_resized_is_logged_once(monkeypatch):
    calls = []
    monkeypatch.setattr(logging, "log_first_n", lambda *arguments: calls.append(arguments))
    load("imagenet32", batch_size=4)
    assert not any("imagenet_resized" in call[1] for call in calls)
    load("imagenet_resized/32x32", batch_size=4)
    ((level, message, count),) = [call for call in calls if "imagenet_resized" in call[1]]
    assert (level, count) == (logging.WARNING, 1)
    assert "not comparable" in message


@pytest.mark.parametrize(
    ("name", "split", "kwargs", "message"),
    [
        (
            "cifar10",
            "validation",
            {},
            r"in \['train', 'test'\], got 'validation'.*num_val",
        ),
        ("imagenet32", "test", {}, r"'imagenet32' in \['train', 'validation'\], got 'test'\."),
        ("celeb_a", "train", {"num_validation": 5}, "num_validation only for a dataset"),
        ("cifar10", "train", {"num_validation": -5}, "num_validation of at least 0, got -5"),
        ("cifar10", "train", {"image_size": 16}, "no image_size for 'cifar10'"),
        ("oxford_flowers102", "train", {}, "an image_size for 'oxford_flowers102'"),
        ("ag_news_subset", "train", {}, "a uint8 feature 'image', got 'ag_news_subset'"),
        ("cifar11", "train", {}, "a dataset of .* got 'cifar11'"),
        ("lsun/attic", "train", {}, "a dataset of .* got 'lsun/attic'"),
        ("mnist:9.9.9", "train", {}, "a dataset of .* got 'mnist:9.9.9'"),
        ("./no/folder", "train", {}, "an existing folder of images, got './no/folder'"),
    ],
)
def test_errors(name, split, kwargs, message):
    with pytest.raises(ValueError, match=message):
        load(name, batch_size=4, split=split, **kwargs)


def test_image_size_resizes_all_images():
    batches = _batches("oxford_flowers102", 2, image_size=16, training=True)
    assert [batch.shape for batch in batches] == [(4, 16, 16, 3)] * 2
