"""Data that TensorFlow Datasets prepared and stored."""

import io
import sys

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from tfp_realnvp.data import load
from tfp_realnvp.data.__main__ import main


def _noise(index, height, width):
    rng = np.random.default_rng(index)
    coarse = rng.integers(0, 256, [height // 8 + 1, width // 8 + 1, 3], np.uint8)
    return np.kron(coarse, np.ones([8, 8, 1], np.uint8))[:height, :width]


def _encoded(image, file_format):
    content = io.BytesIO()
    Image.fromarray(image).save(content, file_format)
    return content.getvalue()


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
    """50 training images in four files and 10 test images, with their number as pixels.

    The last digit of the number is their label.
    """
    root = tmp_path_factory.mktemp("cifar10")
    source = root / "source" / "cifar-10-batches-bin"
    source.mkdir(parents=True)
    (source / "batches.meta.txt").write_text("\n".join(f"label{i}" for i in range(10)))
    for number, name in enumerate(
        [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    ):
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


def _indices(dataset, count=None):
    return [batch.numpy()[:, 0, 0, 0].tolist() for batch in dataset.take(count or -1)]


def _flat(batches):
    return [index for batch in batches for index in batch]


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_cifar10(cifar10, cache_bytes):
    common = {"batch_size": 8, "data_dir": cifar10, "cache_bytes": cache_bytes}
    train = load("cifar10", training=True, **common)
    assert (train.num_images, train.steps_per_epoch) == (50, 6)
    batches = _indices(train.dataset, 12)
    epochs = _flat(batches[:6]), _flat(batches[6:])
    for epoch in epochs:
        assert len(set(epoch)) == 48 and set(epoch) <= set(range(50))
    assert epochs[0] != epochs[1]
    resumed = load("cifar10", training=True, epoch=1, step=2, **common)
    assert _indices(resumed.dataset, 4) == batches[8:]

    test = load("cifar10", split="test", **common)
    assert (test.num_images, test.steps_per_epoch) == (10, 2)
    assert sorted(_flat(_indices(test.dataset))) == list(range(50, 60))
    assert _indices(test.dataset) == _indices(load("cifar10", split="test", **common).dataset)


def test_the_order_of_files_differs_between_epochs(cifar10):
    train = load(
        "cifar10", batch_size=50, training=True, data_dir=cifar10, cache_bytes=0, shuffle_buffer=1
    )
    orders = {tuple(order) for order in _indices(train.dataset, 6)}
    assert len(orders) > 1


@pytest.mark.parametrize("cache_bytes", [2**30, *ft.full(0)])
def test_labels(cifar10, cache_bytes):
    common = {"batch_size": 8, "data_dir": cifar10, "cache_bytes": cache_bytes}
    images = load("cifar10", training=True, **common)
    image_data = load("cifar10", training=True, condition="label", **common)
    assert (image_data.num_classes, image_data.conditional_event_shape) == (10, None)
    batches = [*image_data.dataset.take(12).as_numpy_iterator()]
    for (with_label, labels), expected in zip(batches, images.dataset, strict=False):
        np.testing.assert_array_equal(with_label, expected)
        np.testing.assert_array_equal(labels, with_label[:, 0, 0, 0] % 10)
    resumed = load("cifar10", training=True, condition="label", epoch=1, step=2, **common)
    for batch, expected in zip(resumed.dataset, batches[8:], strict=False):
        np.testing.assert_array_equal(batch[0], expected[0])
        np.testing.assert_array_equal(batch[1], expected[1])
    numbers = []
    for split in ("train", "validation", "test"):
        part = load("cifar10", split=split, condition="label", num_validation=12, **common)
        for pixels, labels in part.dataset.as_numpy_iterator():
            np.testing.assert_array_equal(labels, pixels[:, 0, 0, 0] % 10)
            numbers += pixels[:, 0, 0, 0].tolist()
    assert sorted(numbers) == list(range(60))


def test_held_out_validation(cifar10):
    common = {"batch_size": 4, "data_dir": cifar10, "num_validation": 12}
    parts = [load("cifar10", split=split, **common) for split in ("train", "validation", "test")]
    assert [part.num_images for part in parts] == [38, 12, 10]
    assert parts[0].splits == ("train", "test", "validation")
    train, validation, test = (set(_flat(_indices(part.dataset))) for part in parts)
    assert (len(train), len(validation), len(test)) == (38, 12, 10)
    assert train | validation == set(range(50))
    with pytest.raises(ValueError, match=r"num_validation less than 50, .* got 50"):
        load("cifar10", batch_size=4, data_dir=cifar10, num_validation=50)


def test_the_output_of_the_command(cifar10, capsys):
    main(["--dataset=cifar10", f"--data_dir={cifar10}"])
    assert capsys.readouterr().out.splitlines() == [
        "cifar10: images of shape (32, 32, 3) with values in [0, 256), evaluated on test",
        "train: 50 images",
        "test: 10 images",
    ]


def test_celeb_a():
    """Crops, and attributes in the order of their sorted names."""
    images = [_encoded(_noise(index, 218, 178), "JPEG") for index in range(3)]
    names = sorted(tfds.builder("celeb_a").info.features["attributes"])
    values = np.random.default_rng(0).integers(0, 2, [3, len(names)])
    attributes = {name: values[:, i] > 0 for i, name in reversed([*enumerate(names)])}

    def stored(builder, **options):
        return tf.data.Dataset.from_tensor_slices({"image": images, "attributes": attributes})

    with tfds.testing.mock_data(as_dataset_fn=stored):
        image_data = load("celeb_a", batch_size=4, condition="attributes", cache_bytes=0)
        [(read, conditions)] = image_data.dataset.as_numpy_iterator()
    np.testing.assert_array_equal(conditions, values)
    for image, content in zip(read, images, strict=True):
        cropped = Image.open(io.BytesIO(content)).crop((15, 40, 163, 188))
        # 148 / 64 = 37 / 16
        large = cropped.resize((148 * 16, 148 * 16), Image.Resampling.NEAREST)
        assert np.abs(np.asarray(large.reduce(37)).astype(int) - image).max() <= 1


def test_image_folders_contain_the_images_of_tfds_image_folder(tmp_path):
    for index in range(6):
        path = tmp_path / ("train" if index < 4 else "test") / f"label{index % 2}"
        path.mkdir(parents=True, exist_ok=True)
        (path / f"{index}.png").write_bytes(_encoded(_noise(index, 16, 16), "PNG"))
    builder = tfds.ImageFolder(str(tmp_path))
    for split in ("train", "test"):
        image_data = load(str(tmp_path), batch_size=1, split=split)
        ours = {batch.numpy().tobytes() for batch in image_data.dataset}
        theirs = {e["image"].numpy().tobytes() for e in builder.as_dataset(split=split)}
        assert ours == theirs


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("cifar10", ""),
        ("imagenet64", "not comparable"),
        ("celeb_a", "downloads/manual"),
        ("lsun/tower", "tensorflow-io"),
        ("svhn_cropped", ""),
    ],
)
def test_missing_data(tmp_path, name, note):
    with pytest.raises(FileNotFoundError) as error:
        load(name, batch_size=4, data_dir=str(tmp_path))
    message = str(error.value)
    assert f"No data of '{name}' in {tmp_path}." in message
    command = f"python -m tfp_realnvp.data --dataset={name} --data_dir={tmp_path} --download"
    assert command in message
    assert note in message
    assert not list(tmp_path.iterdir())


def test_download_prepares_missing_data(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        tfds.core.DatasetBuilder, "download_and_prepare", lambda self: calls.append(self.name)
    )
    with pytest.raises(FileNotFoundError):
        load("mnist", batch_size=4, data_dir=str(tmp_path), download=True)
    assert calls == ["mnist"]


def test_missing_tensorflow_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match="pip install tensorflow-datasets"):
        load("cifar10", batch_size=4)


def test_distribution(cifar10):
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    train = load("cifar10", batch_size=8, training=True, data_dir=cifar10)
    distributed = strategy.experimental_distribute_dataset(train.dataset)
    assert next(iter(distributed)).shape == (8, 32, 32, 3)

    def shard(context):
        return load(
            "cifar10",
            batch_size=context.get_per_replica_batch_size(8),
            training=True,
            data_dir=cifar10,
            num_shards=context.num_input_pipelines,
            shard_index=context.input_pipeline_id,
        ).dataset

    from_function = strategy.distribute_datasets_from_function(shard)
    np.testing.assert_array_equal(next(iter(from_function)), next(iter(train.dataset)))
