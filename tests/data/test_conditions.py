"""Conditions stay with their images, whatever the source and the position in the batches."""

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image
from sklearn import datasets

import tfp_realnvp as tfr
from tfp_realnvp.data import load, load_array_file

_SHAPE = (4, 4, 3)


def _images(count):
    """Color images whose class is their number modulo 3, and whose pixels identify them."""
    images = np.random.default_rng(0).integers(0, 256, [count, *_SHAPE], np.uint8)
    images[:, :, [0, -1]] = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return images


def _npz(folder):
    path = folder / "images.npz"
    images, labels = _images(40), np.arange(40) % 3
    np.savez(
        path,
        **{"x_train": images[:30], "y_train": labels[:30]},
        **{"x_test": images[30:], "y_test": labels[30:]},
    )
    return path


def _unsplit_npz(folder):
    path = folder / "images.npz"
    np.savez(path, images=_images(40), labels=np.arange(40, dtype=np.uint8) % 3)
    return path


def _folder(folder):
    for number, image in enumerate(_images(40)):
        path = folder / ("train" if number < 30 else "test") / f"class{number % 3}"
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path / f"{number}.png")
    return folder


def _unsplit_folder(folder):
    for number, image in enumerate(_images(40)):
        path = folder / f"class{number % 3}" / "deeper"
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path / f"{number}.png")
    return folder


_SOURCES = pytest.mark.parametrize(
    ("make", "cache_bytes"),
    [
        (_npz, 2**30),
        (_unsplit_npz, 2**30),
        (_folder, 2**30),
        (_folder, 0),
        (_unsplit_folder, 0),
    ],
)


def _batches(name, count=-1, **kwargs):
    image_data = load(str(name), **{"batch_size": 4, "condition": "label", **kwargs})
    return [
        (images, labels) for images, labels in image_data.dataset.take(count).as_numpy_iterator()
    ]


def _check_labels(batches):
    for images, labels in batches:
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(images[:, 0, 0, 0] % 3, labels)


def _assert_equal(first, second):
    for one, other in zip(first, second, strict=True):
        for array, expected in zip(one, other, strict=True):
            np.testing.assert_array_equal(array, expected)


@_SOURCES
def test_training(make, cache_bytes, tmp_path):
    path, options = make(tmp_path), {"training": True, "flip": True, "cache_bytes": cache_bytes}
    image_data = load(str(path), batch_size=4, condition="label", **options)
    assert image_data.dataset.element_spec == (
        tf.TensorSpec([4, *_SHAPE], tf.uint8),
        tf.TensorSpec([4], tf.int32),
    )
    assert (image_data.num_classes, image_data.conditional_event_shape) == (3, None)
    steps = image_data.steps_per_epoch
    whole = _batches(path, 3 * steps, **options)
    _check_labels(whole)
    # Images, their order and flips are those without conditions.
    plain = load(str(path), batch_size=4, **options)
    assert (plain.num_classes, plain.conditional_event_shape) == (None, None)
    for (images, _), expected in zip(whole, plain.dataset, strict=False):
        np.testing.assert_array_equal(images, expected)
    _assert_equal(_batches(path, 3, epoch=1, step=2, **options), whole[steps + 2 : steps + 5])


@_SOURCES
def test_shards_of_training(make, cache_bytes, tmp_path):
    path, options = make(tmp_path), {"training": True, "cache_bytes": cache_bytes}
    shards = [
        _batches(path, 5, batch_size=2, num_shards=2, shard_index=index, **options)
        for index in (0, 1)
    ]
    for step, batch in enumerate(_batches(path, 5, **options)):
        for part, expected in enumerate(batch):
            together = np.stack([shard[step][part] for shard in shards], axis=1)
            np.testing.assert_array_equal(together.reshape(expected.shape), expected)


@_SOURCES
def test_evaluation_and_splits(make, cache_bytes, tmp_path):
    path, options = make(tmp_path), {"cache_bytes": cache_bytes}
    seen = []
    held_out = {"num_validation": 6}
    for split in ("train", "validation", "test"):
        batches = _batches(path, split=split, **held_out, **options)
        _check_labels(batches)
        seen += [number for images, _ in batches for number in images[:, 0, 0, 0]]
        shards = [
            _batches(path, split=split, num_shards=2, shard_index=i, **held_out, **options)
            for i in (0, 1)
        ]
        for shard in shards:
            _check_labels(shard)
        assert sum(len(images) for shard in shards for images, _ in shard) == sum(
            len(images) for images, _ in batches
        )
    assert sorted(seen) == list(range(40))


def test_digits():
    digits = datasets.load_digits()
    known = {
        image.astype(np.uint8).tobytes(): label
        for image, label in zip(digits.images, digits.target, strict=True)
    }
    number = 0
    for split in ("train", "validation", "test"):
        for images, labels in _batches("digits", split=split, batch_size=64, num_validation=200):
            assert [known[image.tobytes()] for image in images] == labels.tolist()
            number += len(images)
    assert number == 1797
    image_data = load("digits", batch_size=64, training=True, condition="label")
    assert image_data.num_classes == 10
    for images, labels in image_data.dataset.take(30).as_numpy_iterator():
        assert [known[image.tobytes()] for image in images] == labels.tolist()


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("train_images", "train_labels", "test_images", "test_labels"), np.arange(4)),
        (("train", "y_train", "test", "test_labels"), np.arange(4, dtype=np.uint8)),
        (("x_train", "y_train", "x_val", "y_val"), np.arange(4)[:, np.newaxis]),
        (("x_train", "y_train", "validation", "validation_labels"), np.arange(4)),
    ],
)
def test_names_of_labels(tmp_path, names, labels):
    arrays = dict(zip(names, [_images(4), labels, _images(8)[4:], labels[::-1]], strict=True))
    np.savez(tmp_path / "a.npz", **arrays)
    train, other = load_array_file(tmp_path / "a.npz", labels=True).values()
    np.testing.assert_array_equal(train[1], np.arange(4))
    np.testing.assert_array_equal(other[1], np.arange(4)[::-1])
    np.testing.assert_array_equal(other[0], _images(8)[4:])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, r"Expected labels in .*a.npz, .*\['labels'\], got .*images"),
        ({"labels": np.arange(5)}, r"of shape \[4\] as labels in .* int64 .* shape \(5,\)"),
        ({"labels": np.arange(4.0)}, r"integers .* got float64 of shape \(4,\)"),
        ({"labels": np.arange(4) - 1}, r"integers from 0 .* got int64 from -1 of"),
        ({"labels": np.eye(4, dtype=int)}, r"got int64 .* of shape \(4, 4\)"),
        ({"train": _images(4), "labels": np.arange(4)}, r"'train_labels', 'y_train'\], got"),
    ],
)
def test_wrong_labels(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", images=_images(4), **arrays)
    with pytest.raises(ValueError, match=message):
        load(str(tmp_path / "a.npz"), batch_size=1, condition="label")
    assert load(str(tmp_path / "a.npz"), batch_size=1).num_images


def test_labels_of_skipped_images(tmp_path):
    path = _folder(tmp_path)
    for number in (0, 7, 20):
        (path / "train" / f"class{number % 3}" / f"{number}.png").write_bytes(b"")
    for cache_bytes in (0, 2**30):
        batches = _batches(path, on_error="skip", cache_bytes=cache_bytes)
        _check_labels(batches)
        numbers = {number for images, _ in batches for number in images[:, 0, 0, 0]}
        assert numbers == set(range(30)) - {0, 7, 20}


def test_images_beside_the_classes(tmp_path):
    Image.fromarray(_images(1)[0]).save(_folder(tmp_path) / "train" / "0.png")
    message = r"a subfolder of .*train for each class, .* got the image .*train.0\.png"
    with pytest.raises(ValueError, match=message):
        load(str(tmp_path), batch_size=1, condition="label")
    assert load(str(tmp_path), batch_size=1).num_images == 31


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_gray(tmp_path, training, cache_bytes):
    options = {"training": training, "flip": True, "cache_bytes": cache_bytes, "batch_size": 4}
    path = _folder(tmp_path)
    image_data = load(str(path), condition="gray", **options)
    assert (image_data.num_classes, image_data.conditional_event_shape) == (None, (4, 4, 1))
    plain = load(str(path), **options)
    for (images, gray), expected in zip(image_data.dataset, plain.dataset.take(10), strict=False):
        np.testing.assert_array_equal(images, expected)
        assert gray.dtype == tf.float32
        luminance = images.numpy() @ np.array([[0.2989], [0.587], [0.114]]) / 255
        np.testing.assert_allclose(gray, luminance, atol=1e-6)


@pytest.fixture
def mock_data():
    with tfds.testing.mock_data(num_examples=10):
        yield


# Labels, vectors and luminance, each read from files and from memory. (Random crops always are
# read from files.)
@pytest.mark.parametrize(
    ("name", "condition", "num_classes", "event_shape", "cache_bytes"),
    [
        ("mnist", "label", 10, None, 2**30),
        ("celeb_a", "landmarks", None, (10,), 0),
        ("cifar10", "gray", None, (32, 32, 1), 2**30),
        *ft.full(
            ("cifar10", "label", 10, None, 0),
            ("imagenet_resized/32x32", "label", 1000, None, 0),
            ("celeb_a", "attributes", None, (40,), 2**30),
            ("smallnorb", "label_category", 5, None, 2**30),
            ("dsprites", "value_scale", None, (1,), 0),
            ("lsun/tower", "gray", None, (64, 64, 1), 0),
        ),
    ],
)
def test_datasets_of_tfds(mock_data, name, condition, num_classes, event_shape, cache_bytes):
    options = {"batch_size": 4, "condition": condition, "cache_bytes": cache_bytes}
    image_data = load(name, training=True, **options)
    assert (image_data.num_classes, image_data.conditional_event_shape) == (
        num_classes,
        event_shape,
    )
    spec = image_data.dataset.element_spec
    assert spec[0] == tf.TensorSpec([4, *image_data.image_shape], tf.uint8)
    dtype = tf.int32 if num_classes else tf.float32
    assert spec[1] == tf.TensorSpec([4, *(event_shape or ())], dtype)
    batches = [*image_data.dataset.take(5).as_numpy_iterator()]
    resumed = load(name, training=True, epoch=1, step=1, **options)
    _assert_equal(resumed.dataset.take(2).as_numpy_iterator(), batches[3:])
    one_pass = [*load(name, **options).dataset.as_numpy_iterator()]
    assert [len(images) for images, _ in one_pass] == [4, 4, 2]
    conditions = np.concatenate([condition for _, condition in one_pass])
    if num_classes:
        assert conditions.min() >= 0 and conditions.max() < num_classes
    if condition == "attributes":
        assert set(conditions.ravel()) == {0.0, 1.0}
    # Flips do not change labels and vectors.
    if condition != "gray":
        known = {
            image.tobytes(): value
            for images, values in one_pass
            for image, value in zip([*images, *images[:, :, ::-1]], [*values, *values], strict=True)
        }
        for images, values in batches:
            for image, value in zip(images, values, strict=True):
                np.testing.assert_array_equal(known[image.tobytes()], value)


@pytest.mark.parametrize(
    ("name", "condition", "message"),
    [
        ("photos", "label", r"a condition of 'photos' in \['gray'\], got 'label'"),
        ("digits", "attributes", r"of 'digits' in \['label', 'gray'\], got 'attributes'"),
        ("digits", "gray", r"color images .* 'gray', got 'digits' .* \(8, 8, 1\)"),
        ("imagenet32", "label", r"of 'imagenet32' in \['gray'\], got 'label'"),
        ("celeb_a", "label", r"'landmarks', 'attributes', .*'gray'\], got 'label'"),
        ("mnist", "gray", r"color images .* got 'mnist' .* \(28, 28, 1\)"),
        ("cifar10", "id", r"of 'cifar10' in \['label', 'gray'\], got 'id'"),
    ],
)
def test_missing_conditions(mock_data, name, condition, message):
    with pytest.raises(ValueError, match=message):
        load(name, batch_size=4, condition=condition)


def test_other_conditions_of_files(tmp_path):
    for path in (_npz(tmp_path), _folder(tmp_path / "folder")):
        with pytest.raises(ValueError, match=r"in \['label', 'gray'\], got 'attributes'"):
            load(str(path), batch_size=1, condition="attributes")
    np.save(tmp_path / "a.npy", _images(4))
    with pytest.raises(ValueError, match=r"labels in .*a\.npy, an \.npz file with .*'labels'"):
        load(str(tmp_path / "a.npy"), batch_size=1, condition="label")


@pytest.mark.parametrize(("make", "condition"), [(_npz, "label"), (_folder, "gray")])
def test_a_model_takes_what_load_returns(make, condition, tmp_path):
    image_data = load(str(make(tmp_path)), batch_size=4, split="test", condition=condition)
    flow = tfr.RealNVPImage(
        image_data.image_shape,
        num_scales=1,
        num_blocks=0,
        num_filters=4,
        num_classes=image_data.num_classes,
        conditional_event_shape=image_data.conditional_event_shape,
    )
    for images, conditions in image_data.dataset:
        latents = flow.inverse(tf.cast(images, tf.float32) + 0.5, conditional_input=conditions)
        assert latents.shape == images.shape and np.isfinite(latents).all()
