"""Images in NumPy files and in folders."""

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import tfp_realnvp as tfr
from tfp_realnvp.data import list_images, load_arrays

# NumPy files.


def _numbered(count, start=0, dtype=np.uint8):
    return np.arange(start, start + count, dtype=dtype).reshape([count, 1, 1, 1])


def test_arrays_by_split(tmp_path):
    path = tmp_path / "images.npz"
    expected = {"train": _numbered(5), "validation": _numbered(3, 5), "test": _numbered(2, 8)}
    np.savez(path, **expected, images=_numbered(1), train_classes=np.arange(5))
    arrays = load_arrays(path)
    for split, images in expected.items():
        np.testing.assert_array_equal(getattr(arrays, split), images)
    assert (arrays.num_values, arrays.flip, arrays.num_classes) == (256, False, None)
    assert arrays.image_shape == (1, 1, 1)


def test_labels_by_split(tmp_path):
    path = tmp_path / "images.npz"
    labels = {"train_labels": np.arange(5, dtype=np.uint8), "test_labels": np.arange(2) + 6}
    np.savez(path, train=_numbered(5), test=_numbered(2), **labels)
    arrays = load_arrays(path)
    np.testing.assert_array_equal(arrays.train_labels, np.arange(5))
    np.testing.assert_array_equal(arrays.test_labels, [6, 7])
    assert arrays.num_classes == 8 and arrays.train_labels.dtype == np.int32


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_single_array_is_split_identically_on_every_call(tmp_path, suffix):
    path = tmp_path / f"images.{suffix}"
    if suffix == "npy":
        np.save(path, _numbered(50))
    else:
        np.savez_compressed(path, images=_numbered(50), labels=np.arange(50) % 7)
    arrays, again = load_arrays(path), load_arrays(str(path))
    assert (len(arrays.train), len(arrays.test)) == (45, 5)
    together = np.concatenate([arrays.train, arrays.test]).ravel()
    np.testing.assert_array_equal(np.sort(together), np.arange(50))
    assert (arrays.test.ravel() != np.arange(45, 50)).any()
    np.testing.assert_array_equal(arrays.test, again.test)
    if suffix == "npz":
        np.testing.assert_array_equal(arrays.train_labels, arrays.train.ravel() % 7)
        np.testing.assert_array_equal(arrays.test_labels, arrays.test.ravel() % 7)


@pytest.mark.parametrize(("largest", "num_values"), [(200, 256), (4095, 4096), (4096, 8192)])
def test_levels_of_16_bits(tmp_path, largest, num_values):
    np.savez(tmp_path / "a.npz", train=_numbered(9, 0, np.uint16), test=_numbered(1, largest, "u2"))
    arrays = load_arrays(tmp_path / "a.npz")
    assert arrays.train.dtype == arrays.test.dtype == np.uint16
    assert arrays.test.max() == largest and arrays.num_values == num_values


_ZEROS = np.zeros([4, 8, 8, 3], np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros([4, 8, 8, 3])}, "images in .*a.npz of dtype uint8 .* got float64"),
        ({"images": _ZEROS[..., 0]}, r"\[N, H, W, C\], got uint8 of shape \(4, 8, 8\).*Grayscale"),
        ({"train": _ZEROS[:0], "test": _ZEROS}, r"train in .* got uint8 of shape \(0, 8, 8, 3\)"),
        ({"x_train": _ZEROS}, r"images, or arrays named train and test, in .* got \['x_train'\]"),
        ({"train": _ZEROS, "test": _ZEROS[:, 1:]}, r"one shape .*\(8, 8, 3\).*\(7, 8, 3\)"),
        ({"images": np.array([None] * 4)}, "Cannot read .*a.npz: Object arrays"),
        ({"images": _ZEROS, "labels": np.arange(5)}, r"shape \[4\] as labels .* got .*3, 4\]"),
        ({"images": _ZEROS, "labels": np.arange(4.0)}, r"integers .* got array\(\[0., 1., "),
        ({"train": _ZEROS, "test": _ZEROS, "test_labels": np.arange(4)}, "as train_labels in"),
    ],
)
def test_wrong_arrays(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_arrays(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_files_that_are_not_arrays(tmp_path, content):
    (tmp_path / "images.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"Cannot read .*images.npy"):
        load_arrays(tmp_path / "images.npy")


def test_a_damaged_archive(tmp_path):
    np.savez_compressed(tmp_path / "images.npz", images=_image(0, 100, 100)[np.newaxis])
    content = (tmp_path / "images.npz").read_bytes()
    (tmp_path / "images.npz").write_bytes(content[:2000] + bytes(100) + content[2100:])
    with pytest.raises(ValueError, match=r"Cannot read .*images.npz"):
        load_arrays(tmp_path / "images.npz")


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.npz"):
        load_arrays(tmp_path / "none.npz")


# Folders.


def _write(path, image, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **kwargs)


def _image(index, height=8, width=8, channels=3):
    shape = [height, width, channels] if channels > 1 else [height, width]
    return np.random.default_rng(index).integers(0, 256, shape, np.uint8)


def _folder(root, count=20, **kwargs):
    for index in range(count):
        _write(root / f"class{index % 3}" / "deeper" / f"{index:03}.png", _image(index, **kwargs))
    return root


def _all(arrays):
    return np.concatenate([arrays.train, arrays.test])


def test_files_are_split_identically_on_every_call(tmp_path):
    folder = _folder(tmp_path)
    arrays = load_arrays(folder)
    assert (len(arrays.train), len(arrays.test)) == (18, 2)
    assert (arrays.num_values, arrays.flip, arrays.num_classes) == (256, False, 3)
    expected = np.stack([_image(index) for index in range(20)])
    np.testing.assert_array_equal(ft.by_rows(_all(arrays)), ft.by_rows(expected))
    np.testing.assert_array_equal(arrays.test, load_arrays(folder).test)
    # In the order of the files, with their classes.
    for split, paths in list_images(folder).items():
        images, labels = getattr(arrays, split), getattr(arrays, f"{split}_labels")
        for path, image, label in zip(paths, images, labels, strict=True):
            np.testing.assert_array_equal(image, _image(int(path.stem)))
            assert label == int(path.stem) % 3


def test_splits_are_subfolders(tmp_path):
    for split, indices in {"train": range(6), "validation": (6, 7), "test": (8, 9)}.items():
        for index in indices:
            _write(tmp_path / split / f"class{index % 2}" / f"{index}.PNG", _image(index))
    (tmp_path / "train" / "notes.txt").write_text("no image")
    arrays = load_arrays(tmp_path)
    expected = np.stack([_image(8), _image(9)])
    np.testing.assert_array_equal(arrays.test, expected)
    np.testing.assert_array_equal(arrays.test_labels, [0, 1])
    assert (len(arrays.train), len(arrays.validation), arrays.num_classes) == (6, 2, 2)


def test_images_beside_the_classes_have_no_labels(tmp_path):
    _write(_folder(tmp_path) / "0.png", _image(0))
    arrays = load_arrays(tmp_path)
    assert arrays.num_classes is arrays.train_labels is arrays.test_labels is None


def test_jpeg_images_are_resized_and_cropped(tmp_path):
    rows, columns = np.indices([60, 45])
    smooth = np.stack([rows * 4, columns * 5, rows + columns], -1).astype(np.uint8)
    for name in ("0.jpg", "1.jpeg"):
        _write(tmp_path / name, smooth, quality=100, subsampling=0)
    with Image.open(tmp_path / "0.jpg") as image:
        # The central square begins half a pixel further up or down.
        above, below = (np.asarray(image.crop((0, y, 45, y + 45)).reduce(3)) for y in (7, 8))
    expected = (above.astype(int) + below) / 2
    images = load_arrays(tmp_path, image_size=15).train
    assert images.shape == (1, 15, 15, 3) and images.dtype == np.uint8
    assert np.abs(images - expected).max() <= 1.5


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grayscale_images(tmp_path, mode):
    images = [Image.fromarray(_image(index, channels=1)).convert(mode) for index in range(4)]
    for index, image in enumerate(images):
        image.save(tmp_path / f"{index}.png")
    arrays = load_arrays(tmp_path)
    assert arrays.image_shape == (8, 8, 1)
    expected = np.stack([np.asarray(image.convert("L")) for image in images])
    np.testing.assert_array_equal(ft.by_rows(_all(arrays)), ft.by_rows(expected))


def test_transparency_is_dropped_and_grayscale_is_converted_to_rgb(tmp_path):
    rgba = np.concatenate([_image(0), _image(1)[..., :1]], -1)
    palette = Image.fromarray(_image(3)).quantize(16)
    _write(tmp_path / "train" / "1.png", rgba)
    _write(tmp_path / "train" / "2.png", _image(2, channels=1))
    palette.save(tmp_path / "train" / "3.png")
    _write(tmp_path / "test" / "1.png", _image(4))
    gray = np.repeat(_image(2, channels=1)[..., None], 3, -1)
    expected = [rgba[..., :3], gray, np.asarray(palette.convert("RGB"))]
    np.testing.assert_array_equal(load_arrays(tmp_path).train, expected)


def test_16_bit_images_keep_their_levels(tmp_path):
    levels = np.random.default_rng(0).integers(0, 4096, [6, 8, 8, 1], np.uint16)
    levels[:, 0, 0] = 4095
    for index, image in enumerate(levels):
        _write(tmp_path / f"{index}.png", image[..., 0])
    arrays = load_arrays(tmp_path)
    assert arrays.train.dtype == np.uint16 and arrays.num_values == 4096
    np.testing.assert_array_equal(ft.by_rows(_all(arrays)), ft.by_rows(levels))
    halved = load_arrays(tmp_path, image_size=4)
    assert halved.image_shape == (4, 4, 1) and halved.train.dtype == np.uint16
    assert np.abs(_all(halved).mean() - levels.mean()) < 100
    # A model takes them as they are.
    flow = ft.flow_distribution((8, 8, 1), num_values=4096, num_scales=1, num_blocks=0)
    model = tfr.FlowModel(flow)
    expected = tfr.log_prob(model, arrays.test)
    np.testing.assert_array_equal(expected, tfr.log_prob(model, arrays.test.astype(np.float32)))

    _write(tmp_path / "0.png", _image(0, channels=1))
    with pytest.raises(ValueError, match=r"one size and dtype, 8×8 uint.* got .* of 8×8 uint"):
        load_arrays(tmp_path)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_colors(tmp_path, channels):
    image = tf.constant(4095, tf.uint16, [8, 8, channels])
    for index in range(2):
        (tmp_path / f"{index}.png").write_bytes(tf.io.encode_png(image).numpy())
    with pytest.raises(ValueError, match=r"Cannot read image .*\d\.png: .* as uint16 in an \.npz"):
        load_arrays(tmp_path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_orientation(tmp_path, suffix):
    upright = np.zeros([8, 12], np.uint8)
    upright[:4] = 200
    stored = Image.fromarray(upright[::-1, ::-1])
    exif = stored.getexif()
    exif[0x0112] = 3  # rotated by 180 degrees
    stored.save(tmp_path / f"1.{suffix}", exif=exif)
    stored = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)
    exif[0x0112] = 6  # rotated by 90 degrees
    stored.save(tmp_path / f"2.{suffix}", exif=exif)
    for image in _all(load_arrays(tmp_path)):
        assert np.abs(image[..., 0] - upright.astype(int)).max() <= 8


@pytest.mark.parametrize(("name", "size"), [("a.png", 3000), ("b.jpg", 1000), ("c.png", 0)])
def test_damaged_images(tmp_path, name, size):
    _write(tmp_path / "0.png", _image(0))
    _write(tmp_path / name, _image(99, 64, 64))
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:size])
    with pytest.raises(ValueError, match=rf"Cannot read image .*{name}"):
        load_arrays(tmp_path)


def test_images_of_different_sizes(tmp_path):
    for name in ("1", "3"):
        _write(tmp_path / "train" / f"{name}.png", _image(0))
    _write(tmp_path / "test" / "2.png", _image(0, height=9))
    message = r"8×8 uint8 like .*1\.png, got .*2\.png of 9×8 uint8\. .*image_size="
    with pytest.raises(ValueError, match=message):
        load_arrays(tmp_path)
    assert load_arrays(tmp_path, image_size=8).image_shape == (8, 8, 3)


def test_folders_without_images(tmp_path):
    with pytest.raises(ValueError, match=r"at least two PNG or JPEG files in .*, got 0"):
        list_images(tmp_path)
    _write(tmp_path / "train" / "1.png", _image(0))
    with pytest.raises(ValueError, match=r"PNG or JPEG files in .*test, got"):
        list_images(tmp_path)
