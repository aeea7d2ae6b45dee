"""Data prepared and stored by TensorFlow Datasets, from files in their original formats."""

import io
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from tfp_realnvp.data import load
from tfp_realnvp.data.__main__ import main
from tfp_realnvp.data.tfds_package import import_tfds


def _noise(index, height, width):
    rng = np.random.default_rng(index)
    coarse = rng.integers(0, 256, [height // 8 + 1, width // 8 + 1, 3], np.uint8)
    return np.kron(coarse, np.ones([8, 8, 1], np.uint8))[:height, :width]


def _encoded(image, file_format):
    content = io.BytesIO()
    Image.fromarray(image).save(content, file_format)
    return content.getvalue()


def _prepare(name, data_dir, downloads, monkeypatch, num_shards=None):
    """Prepares a dataset with TensorFlow Datasets from the files that `downloads` returns."""
    # tensorflow-datasets 4.9.10 needs it to prepare data, but does not declare it.
    pytest.importorskip("importlib_resources")
    manager = tfds.download.DownloadManager
    with monkeypatch.context() as patch:
        patch.setattr(manager, "download", lambda self, urls: downloads(urls))
        patch.setattr(manager, "download_and_extract", lambda self, urls: downloads(urls))
        # This skips the checks of disk space and checksums.
        config = tfds.download.DownloadConfig(num_shards=num_shards, try_download_gcs=False)
        tfds.builder(name, data_dir=data_dir).download_and_prepare(download_config=config)


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
    with pytest.MonkeyPatch.context() as patch:
        _prepare("cifar10", root / "data", lambda url: str(source.parent), patch, num_shards=4)
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


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_labels(cifar10, cache_bytes):
    common = {"batch_size": 8, "data_dir": cifar10, "cache_bytes": cache_bytes}
    images = load("cifar10", training=True, **common)
    found = load("cifar10", training=True, condition="label", **common)
    assert (found.num_classes, found.conditional_event_shape) == (10, None)
    batches = [*found.dataset.take(12).as_numpy_iterator()]
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


def test_imagenet32(tmp_path, monkeypatch):
    images = [_noise(index, 32, 32) for index in range(9)]

    def archive(url):
        path = tmp_path / url.rsplit("/", 1)[-1]
        with tarfile.open(path, "w") as tar:
            chosen = range(6) if "train" in path.name else range(6, 9)
            for index in chosen:
                content = _encoded(images[index], "PNG")
                member = tarfile.TarInfo(f"{path.stem}/{index:04}.png")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return str(path)

    _prepare(
        "downsampled_imagenet/32x32", tmp_path, lambda urls: [*map(archive, urls)], monkeypatch
    )
    for split, chosen in (("train", range(6)), ("validation", range(6, 9))):
        found = load("imagenet32", batch_size=4, split=split, data_dir=str(tmp_path))
        read = np.concatenate([batch.numpy() for batch in found.dataset])
        expected = {images[index].tobytes() for index in chosen}
        assert {image.tobytes() for image in read} == expected


def test_celeb_a(tmp_path, monkeypatch):
    images = [_encoded(_noise(index, 218, 178), "JPEG") for index in range(9)]
    names = [f"{index + 1:06}.jpg" for index in range(9)]
    with zipfile.ZipFile(tmp_path / "img_align_celeba.zip", "w") as archive:
        for name, content in zip(names, images, strict=True):
            archive.writestr(f"img_align_celeba/{name}", content)
    features = tfds.builder("celeb_a").info.features

    def lines(first, values):
        rows = [f"{name} {values(index)}" for index, name in enumerate(names)]
        return "\n".join([*first, *rows, ""])

    def listed(key, value=lambda index, name: "1"):
        # In another order than that of `load`.
        keys = sorted(features[key])[::-1]
        rows = [[value(index, name) for name in keys] for index in range(len(names))]
        return lines([str(len(names)), " ".join(keys)], lambda index: " ".join(rows[index]))

    def has_attribute(index, name):
        return (index + len(name)) % 4 < 2

    contents = {
        "list_eval_partition": lines([], lambda index: index // 3),
        "list_attr_celeba": listed(
            "attributes", lambda index, name: "1" if has_attribute(index, name) else "-1"
        ),
        "landmarks_celeba": listed("landmarks"),
        "identity_celeba": lines([], str),
    }
    paths = {"img_align_celeba": str(tmp_path / "img_align_celeba.zip")}
    for name, content in contents.items():
        paths[name] = str(tmp_path / f"{name}.txt")
        (tmp_path / f"{name}.txt").write_text(content)

    _prepare("celeb_a", tmp_path, lambda urls: paths, monkeypatch)
    for number, split in enumerate(["train", "validation", "test"]):
        found = load("celeb_a", batch_size=4, split=split, data_dir=str(tmp_path))
        read = np.concatenate([batch.numpy() for batch in found.dataset]).astype(int)
        found = load(
            "celeb_a",
            batch_size=4,
            split=split,
            data_dir=str(tmp_path),
            condition="attributes",
        )
        [(again, attributes)] = found.dataset.as_numpy_iterator()
        np.testing.assert_array_equal(again, read)
        expected = []
        for content in images[3 * number : 3 * number + 3]:
            image = Image.open(io.BytesIO(content)).crop((15, 40, 163, 188))
            # 148 / 64 = 37 / 16
            large = image.resize((148 * 16, 148 * 16), Image.Resampling.NEAREST)
            expected.append(np.asarray(large.reduce(37)).astype(int))
        assert len(read) == 3
        for index, image in enumerate(expected, start=3 * number):
            distances = np.abs(read - image).max(axis=(1, 2, 3))
            assert min(distances) <= 1
            np.testing.assert_array_equal(
                attributes[np.argmin(distances)],
                [has_attribute(index, name) for name in sorted(features["attributes"])],
            )


def test_image_folders_contain_the_images_of_tfds_image_folder(tmp_path):
    for index in range(6):
        path = tmp_path / ("train" if index < 4 else "test") / f"label{index % 2}"
        path.mkdir(parents=True, exist_ok=True)
        (path / f"{index}.png").write_bytes(_encoded(_noise(index, 16, 16), "PNG"))
    builder = tfds.ImageFolder(str(tmp_path))
    for split in ("train", "test"):
        found = load(str(tmp_path), batch_size=1, split=split)
        ours = {batch.numpy().tobytes() for batch in found.dataset}
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
    with pytest.raises(ImportError, match=r'pip install "tfp_realnvp\[examples\]"'):
        import_tfds()


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
