import io
import logging

import numpy as np
import pytest
from PIL import Image

from tfp_realnvp.data import list_images, load


def _write(path, image, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **kwargs)


def _image(index, height=8, width=8, channels=3):
    shape = [height, width, channels] if channels > 1 else [height, width]
    return np.random.default_rng(index).integers(0, 256, shape, np.uint8)


def _folder(root, count=20, **kwargs):
    for index in range(count):
        _write(root / f"{index % 3}" / f"{index:03}.png", _image(index, **kwargs))
    return root


def _loaded(folder, split="train", **kwargs):
    image_data = load(str(folder), batch_size=4, split=split, **kwargs)
    return np.concatenate([batch.numpy() for batch in image_data.dataset])


def _by_rows(images):
    flat = images.reshape(len(images), -1)
    return flat[np.lexsort(flat.T)]


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_png_images_are_split_identically_on_every_call(tmp_path, cache_bytes):
    folder = _folder(tmp_path)
    train, test = (_loaded(folder, split, cache_bytes=cache_bytes) for split in ("train", "test"))
    assert len(train) == 18 and len(test) == 2
    expected = np.stack([_image(index) for index in range(20)])
    np.testing.assert_array_equal(_by_rows(np.concatenate([train, test])), _by_rows(expected))
    np.testing.assert_array_equal(test, _loaded(folder, "test"))


def test_validation_is_held_out_of_train(tmp_path):
    folder = _folder(tmp_path)
    parts = [_loaded(folder, split, num_validation=5) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [13, 5, 2]
    everything = np.concatenate([_loaded(folder, "train"), _loaded(folder, "test")])
    np.testing.assert_array_equal(_by_rows(np.concatenate(parts)), _by_rows(everything))


def test_splits_are_subfolders(tmp_path):
    for split, indices in {"train": range(6), "validation": (6, 7), "test": (8, 9)}.items():
        for index in indices:
            _write(tmp_path / split / "class" / f"{index}.PNG", _image(index))
    (tmp_path / "train" / "notes.txt").write_text("no image")
    image_data = load(str(tmp_path), batch_size=2)
    assert image_data.splits == ("train", "validation", "test")
    assert (image_data.evaluation_split, image_data.num_images, image_data.flip) == (
        "test",
        6,
        False,
    )
    np.testing.assert_array_equal(_loaded(tmp_path, "test"), np.stack([_image(8), _image(9)]))
    with pytest.raises(ValueError, match="num_validation only for"):
        load(str(tmp_path), batch_size=2, num_validation=2)


@pytest.mark.parametrize("training", [False, True])
def test_jpeg_images_are_resized_and_cropped(tmp_path, training):
    rows, columns = np.indices([60, 45])
    smooth = np.stack([rows * 4, columns * 5, rows + columns], -1).astype(np.uint8)
    for index in range(4):
        _write(tmp_path / f"{index}.jpg", smooth, quality=100, subsampling=0)
    with Image.open(tmp_path / "0.jpg") as image:
        expected = np.asarray(image.reduce(3)).astype(int)[2:17]
    image_data = load(str(tmp_path), batch_size=2, image_size=15, training=training)
    batch = next(iter(image_data.dataset)).numpy()
    assert batch.shape == (2, 15, 15, 3)
    assert np.abs(batch - expected).max() <= 1


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grayscale_images(tmp_path, mode):
    for index in range(4):
        image = Image.fromarray(_image(index, channels=1)).convert(mode)
        image.save(tmp_path / f"{index}.png")
    assert load(str(tmp_path), batch_size=2).image_shape == (8, 8, 1)
    expected = np.stack([_image(index, channels=1) for index in range(4)])[..., None]
    together = np.concatenate([_loaded(tmp_path, split) for split in ("train", "test")])
    np.testing.assert_array_equal(_by_rows(together), _by_rows(expected))
    for split in ("train", "test"):
        _write(tmp_path / "mixed" / split / "1.png", _image(0, channels=1))
        _write(tmp_path / "mixed" / split / "2.png", _image(0))
    with pytest.raises(ValueError, match=r"grayscale images like .*, got color image .*2\.png"):
        load(str(tmp_path / "mixed"), batch_size=2)


def test_transparency_is_dropped_and_grayscale_is_converted_to_rgb(tmp_path):
    rgba = np.concatenate([_image(0), _image(1)[..., :1]], -1)
    _write(tmp_path / "train" / "1.png", rgba)
    _write(tmp_path / "train" / "2.png", _image(2, channels=1))
    expected = [rgba[..., :3], np.repeat(_image(2, channels=1)[..., None], 3, -1)]
    np.testing.assert_array_equal(_loaded(tmp_path), expected)


def _damage(folder):
    content = io.BytesIO()
    Image.fromarray(_image(99, 64, 64)).save(content, "PNG")
    (folder / "truncated.png").write_bytes(content.getvalue()[:3000])
    content = io.BytesIO()
    Image.fromarray(_image(99, 64, 64)).save(content, "JPEG")
    (folder / "truncated.jpg").write_bytes(content.getvalue()[:1000])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpeg").write_text("no image")
    return ["truncated.png", "truncated.jpg", "empty.png", "text.jpeg"]


def test_damaged_images_raise_an_error_or_are_skipped(tmp_path, caplog):
    _folder(tmp_path / "train", count=6)
    names = _damage(tmp_path / "train")
    with pytest.raises(ValueError, match=r"Cannot read image .*train.empty\.png"):
        load(str(tmp_path), batch_size=2)

    with caplog.at_level(logging.WARNING):
        image_data = load(str(tmp_path), batch_size=2, on_error="skip")
    assert image_data.num_images == 6
    for name in names:
        assert sum(name in record.getMessage() for record in caplog.records) == 1
    assert len(_loaded(tmp_path, on_error="skip")) == 6
    assert any("Skipped 4 of 10 images." in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("name", ["truncated.png", "truncated.jpg", "empty.png", "text.jpeg"])
def test_each_damaged_image_alone(tmp_path, name):
    _write(tmp_path / "train" / "0.png", _image(0))
    for other in set(_damage(tmp_path / "train")) - {name}:
        (tmp_path / "train" / other).unlink()
    with pytest.raises(ValueError, match=rf"Cannot read image .*{name}"):
        load(str(tmp_path), batch_size=1)


def test_only_damaged_images(tmp_path):
    (tmp_path / "train").mkdir()
    _damage(tmp_path / "train")
    with pytest.raises(ValueError, match="got 4 unreadable files"):
        load(str(tmp_path), batch_size=1, on_error="skip")


def test_images_of_different_sizes(tmp_path):
    _write(tmp_path / "train" / "1.png", _image(0))
    _write(tmp_path / "train" / "2.png", _image(0, height=9))
    with pytest.raises(ValueError, match=r"8×8 pixels like .*2\.png of 9×8\. Set image_size"):
        load(str(tmp_path), batch_size=1)


def test_folders_without_images(tmp_path):
    with pytest.raises(ValueError, match=r"at least two PNG or JPEG files in .*, got 0"):
        list_images(tmp_path)
    _write(tmp_path / "train" / "1.png", _image(0))
    (tmp_path / "test").mkdir()
    with pytest.raises(ValueError, match=r"PNG or JPEG files in .*test, found none"):
        list_images(tmp_path)


def test_unknown_on_error(tmp_path):
    with pytest.raises(ValueError, match="on_error to be 'raise' or 'skip', got 'ignore'"):
        load(str(_folder(tmp_path)), batch_size=2, on_error="ignore")
