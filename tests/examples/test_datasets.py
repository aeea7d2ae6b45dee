"""datasets.py: the paper's datasets, by mock data and by stored data of TensorFlow Datasets."""

import io

import datasets
import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from tfp_realnvp.data import load_arrays

_NUM_IMAGES = 10
_CASES = {
    # name: (image shape, flip, splits); the second split is the one that the paper reports.
    "cifar10": ((32, 32, 3), True, "train test validation"),
    "imagenet32": ((32, 32, 3), False, "train validation"),
    "imagenet64": ((64, 64, 3), False, "train validation"),
    "imagenet_resized/32x32": ((32, 32, 3), False, "train validation"),
    "imagenet_resized/64x64": ((64, 64, 3), False, "train validation"),
    "celeb_a": ((64, 64, 3), True, "train validation test"),
    "lsun/bedroom": ((64, 64, 3), True, "train validation"),
    "lsun/tower": ((64, 64, 3), True, "train validation"),
    "lsun/church_outdoor": ((64, 64, 3), True, "train validation"),
    "mnist": ((28, 28, 1), False, "train test validation"),
    "svhn_cropped": ((32, 32, 3), False, None),  # not of the paper
}
_KINDS = ("cifar10", "imagenet64", "celeb_a", "lsun/tower", "svhn_cropped")
_NAMES = [*_KINDS, *ft.full(*(name for name in _CASES if name not in _KINDS))]


@pytest.fixture
def mock_data():
    with tfds.testing.mock_data(num_examples=_NUM_IMAGES):
        yield


def _batches(dataset, count=-1):
    return [*dataset.take(count).as_numpy_iterator()]


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
    if "lsun" in name or "imagenet" in name:
        smallest = 96 if "lsun" in name else size
        scaled = [int(side * smallest / min(image.shape[:2]) + 0.5) for side in image.shape[:2]]
        image = _average(image, *scaled)
        top, left = ((side - size) // 2 for side in scaled)
        return image[top : top + size, left : left + size]
    return image


def _original_images(name):
    # Mock images depend on the requested features.
    decoders = tfds.decode.PartialDecoding(
        {"image": True}, decoders={"image": tfds.decode.SkipDecoding()}
    )
    name = datasets.DATASETS[name].tfds_name if name in datasets.DATASETS else name
    examples = tfds.builder(name).as_dataset(split="train", decoders=decoders)
    images = [np.asarray(Image.open(io.BytesIO(e["image"].numpy()))) for e in examples]
    return [image if image.ndim == 3 else image[..., np.newaxis] for image in images]


def test_the_table_is_complete():
    assert set(datasets.DATASETS) == set(_CASES) - {"svhn_cropped"}


@pytest.mark.parametrize("name", _NAMES)
def test_images_of_the_paper(name, mock_data):
    image_shape, flip, splits = _CASES[name]
    images = datasets.load(name)
    assert (images.image_shape, images.num_values, images.flip) == (image_shape, 256, flip)
    assert (images.num_classes, images.conditional_event_shape) == (None, None)
    assert images.num_images("train") == _NUM_IMAGES
    if splits is not None:
        assert images.splits == tuple(splits.split())
        assert images.evaluation_split == images.splits[1]
    # Evaluation is one pass over the prepared originals.
    batches = _batches(images.batches(images.evaluation_split, 4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    found = np.concatenate(batches).astype(int)
    expected = [_prepared(name, image, image_shape[0]) for image in _original_images(name)]
    assert np.abs(found - np.rint(np.array(expected, float))).max() <= 1
    # Training depends on the seed and the step alone.
    dataset = images.training_batches(4, seed=3)
    assert dataset.element_spec == tf.TensorSpec([4, *image_shape], tf.uint8)
    batches = _batches(dataset, 12)
    np.testing.assert_array_equal(
        _batches(images.training_batches(4, seed=3, step=5), 2), batches[5:7]
    )
    other = _batches(images.training_batches(4, seed=4), 12)
    assert (np.stack(batches) != np.stack(other)).any()
    plain = datasets.load(name, flip=False).training_batches(4, seed=3)
    plain = np.concatenate(_batches(plain, 12))
    flipped = np.concatenate(batches)
    mirrored = (flipped == plain[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (mirrored ^ (flipped == plain).all(axis=(1, 2, 3))).all()
    assert 12 <= mirrored.sum() <= 36 if flip else not mirrored.any()
    # Only LSUN has random crops.
    assert (len(np.unique(plain, axis=0)) > _NUM_IMAGES) == ("lsun" in name)


def test_image_size_resizes_all_images(mock_data):
    images = datasets.load("oxford_flowers102", image_size=16)
    assert [batch.shape for batch in images.training_batches(4).take(2)] == [(4, 16, 16, 3)] * 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("celeb_a", {"num_validation": 5}, "without a validation split, got 'celeb_a'"),
        ("cifar10", {"image_size": 16}, "no image_size for 'cifar10'"),
        ("oxford_flowers102", {}, "an image_size for 'oxford_flowers102'"),
        ("ag_news_subset", {}, "a uint8 feature 'image', got 'ag_news_subset'"),
        ("cifar11", {}, r"a dataset of .* got 'cifar11'"),
        ("./no/folder", {}, r"an existing folder of images, got './no/folder'"),
        ("photos", {"condition": "label"}, r"of 'photos' in \['gray'\], got 'label'"),
        ("digits", {"condition": "id"}, r"of 'digits' in \['label', 'gray'\], got 'id'"),
        ("celeb_a", {"condition": "label"}, r"'landmarks', 'attributes', .*'gray'\], got 'label'"),
        ("mnist", {"condition": "gray"}, r"color images .* 'mnist' .* \(28, 28, 1\)"),
    ],
)
def test_errors(name, options, message, mock_data):
    with pytest.raises(ValueError, match=message):
        datasets.load(name, **options)


def test_unknown_splits(mock_data):
    with pytest.raises(ValueError, match=r"'imagenet32' in \['train', 'validation'\], got 'test'"):
        datasets.load("imagenet32").batches("test", 4)
    with pytest.raises(ValueError, match=r"in \['train', 'test'\], got 'validation'"):
        datasets.load("digits", num_validation=0).batches("validation", 4)


def test_images_that_scripts_cannot_draw(tmp_path):
    np.save(tmp_path / "a.npy", np.full([4, 4, 4, 1], 4095, np.uint16))
    with pytest.raises(ValueError, match=r"at most 256 levels, .* got 4096"):
        datasets.load(str(tmp_path / "a.npy"))


# Conditions.


@pytest.mark.parametrize(
    ("name", "condition", "num_classes", "event_shape"),
    [
        ("mnist", "label", 10, None),
        ("celeb_a", "landmarks", None, (10,)),
        *ft.full(
            ("imagenet_resized/32x32", "label", 1000, None),
            ("celeb_a", "attributes", None, (40,)),
            ("smallnorb", "label_category", 5, None),
            ("dsprites", "value_scale", None, (1,)),
        ),
    ],
)
def test_conditions_stay_with_their_images(name, condition, num_classes, event_shape, mock_data):
    images = datasets.load(name, condition=condition)
    assert (images.num_classes, images.conditional_event_shape) == (num_classes, event_shape)
    one_pass = _batches(images.batches("train", 4))
    known = {
        image.tobytes(): value
        for levels, values in one_pass
        for image, value in zip([*levels, *levels[:, :, ::-1]], [*values, *values], strict=True)
    }
    for levels, values in images.training_batches(4).take(5).as_numpy_iterator():
        assert values.dtype == (np.int32 if num_classes else np.float32)
        assert values.shape == (4, *(event_shape or ()))
        for image, value in zip(levels, values, strict=True):
            np.testing.assert_array_equal(known[image.tobytes()], value)


@pytest.mark.parametrize("name", ["photos", "cifar10"])
def test_gray(name, mock_data):
    images, plain = (datasets.load(name, condition=condition) for condition in ("gray", None))
    assert images.conditional_event_shape == (32, 32, 1)
    for method in ("training_batches", "batches"):
        arguments = (4,) if method == "training_batches" else (images.evaluation_split, 4)
        pairs, originals = (getattr(each, method)(*arguments).take(3) for each in (images, plain))
        for (levels, gray), expected in zip(pairs, originals, strict=True):
            np.testing.assert_array_equal(levels, expected)
            luminance = levels.numpy() @ np.array([[0.2989], [0.587], [0.114]]) / 255
            np.testing.assert_allclose(gray, luminance, atol=1e-6)


def test_arrays():
    digits, images = load_arrays("digits"), datasets.load("digits", condition="label")
    assert (images.num_values, images.num_classes, images.flip) == (17, 10, False)
    assert images.splits == ("train", "validation", "test") and images.evaluation_split == "test"
    held_out = digits.hold_out(150)
    for split in images.splits:
        expected = getattr(held_out, split), getattr(held_out, f"{split}_labels")
        ft.assert_equal(_batches(images.batches(split, 2_000)), [expected])


# Data that TensorFlow Datasets stored.


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
    """50 training images in four files and 10 test images, with their number as pixels.

    The last digit of the number is their label.
    """
    root = tmp_path_factory.mktemp("cifar10")
    source = root / "source" / "cifar-10-batches-bin"
    source.mkdir(parents=True)
    (source / "batches.meta.txt").write_text("\n".join(f"label{i}" for i in range(10)))
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    for number, name in enumerate(names):
        records = np.zeros([10, 1 + 3072], np.uint8)
        records[:, 0] = np.arange(10)
        records[:, 1:] = np.arange(10 * number, 10 * number + 10)[:, None]
        records.tofile(source / name)
    # tensorflow-datasets 4.9.10 needs it to prepare data, but does not declare it.
    pytest.importorskip("importlib_resources")
    # This skips the checks of disk space and checksums.
    config = tfds.download.DownloadConfig(num_shards=4, try_download_gcs=False)
    with pytest.MonkeyPatch.context() as patch:
        manager = tfds.download.DownloadManager
        patch.setattr(manager, "download_and_extract", lambda self, url: str(source.parent))
        builder = tfds.builder("cifar10", data_dir=root / "data")
        builder.download_and_prepare(download_config=config)
    return str(root / "data")


def test_stored_data(cifar10):
    images = datasets.load("cifar10", condition="label", num_validation=12, data_dir=cifar10)
    assert [images.num_images(split) for split in images.splits] == [38, 10, 12]
    numbers = []
    for split in images.splits:
        for levels, labels in images.batches(split, 4).as_numpy_iterator():
            np.testing.assert_array_equal(labels, levels[:, 0, 0, 0] % 10)
            numbers += levels[:, 0, 0, 0].tolist()
    assert sorted(numbers) == list(range(60))
    assert set(numbers[38:48]) == set(range(50, 60))
    assert datasets.load("cifar10", data_dir=cifar10).num_images("validation") == 5
    levels, labels = zip(*_batches(images.training_batches(19), 2), strict=True)
    levels, labels = np.concatenate(levels)[:, 0, 0, 0], np.concatenate(labels)
    assert sorted(levels) == sorted(numbers[:38])
    np.testing.assert_array_equal(labels, levels % 10)


def test_celeb_a():
    """Attributes are in the order of their sorted names."""
    images = [np.full([218, 178, 3], 80 * i, np.uint8) for i in range(3)]
    images = [tf.io.encode_jpeg(image).numpy() for image in images]
    names = sorted(tfds.builder("celeb_a").info.features["attributes"])
    values = np.random.default_rng(0).integers(0, 2, [3, len(names)])
    attributes = {name: values[:, i] > 0 for i, name in reversed([*enumerate(names)])}

    def stored(builder, **options):
        return tf.data.Dataset.from_tensor_slices({"image": images, "attributes": attributes})

    with tfds.testing.mock_data(as_dataset_fn=stored):
        [(_, conditions)] = datasets.load("celeb_a", condition="attributes").batches("test", 4)
    np.testing.assert_array_equal(conditions, values)


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("imagenet64", "not comparable"),
        ("celeb_a", "downloads/manual"),
        ("lsun/tower", "tensorflow-io"),
    ],
)
def test_missing_data(tmp_path, name, note):
    images = datasets.load(name, data_dir=str(tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        images.read("train")
    message = str(error.value)
    assert f"No data of '{name}' in {tmp_path}; pass --download" in message and note in message
    assert not list(tmp_path.iterdir())


def test_download_prepares_missing_data(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        tfds.core.DatasetBuilder, "download_and_prepare", lambda self: calls.append(self.name)
    )
    datasets.load("mnist", data_dir=str(tmp_path), download=True)
    assert calls == ["mnist"]


# Preprocessing.


def test_celeb_a_of_another_shape():
    with pytest.raises(tf.errors.InvalidArgumentError, match="218"):
        datasets.celeb_a(tf.zeros([178, 218, 3], tf.uint8))


def test_lsun_in_training_is_a_random_crop():
    image = np.random.default_rng(0).integers(0, 256, [256, 341, 3], np.uint8)
    image = tf.constant(image)
    prepare = tf.function(datasets.lsun)
    resized = datasets.resize_smaller_side(image, 96).numpy()
    assert resized.shape == (96, 128, 3)
    windows = np.lib.stride_tricks.sliding_window_view(resized, (64, 64), (0, 1))
    positions = set()
    for seed in range(40):
        crop = prepare(image, tf.constant([seed, 7])).numpy()
        equal = (np.moveaxis(windows, 2, -1) == crop).all(axis=(2, 3, 4))
        positions.update(zip(*np.nonzero(equal), strict=True))
    rows, columns = zip(*positions, strict=True)
    assert len(positions) > 30
    assert min(rows) < 8 and max(rows) > 24
    assert min(columns) < 16 and max(columns) > 48
