import numpy as np
import pytest

from tfp_realnvp.data import load_array_file


def _numbered(count, start=0):
    return np.arange(start, start + count, dtype=np.uint8).reshape([count, 1, 1, 1])


@pytest.mark.parametrize(
    ("train_key", "test_key", "validation_key"),
    [
        ("train_images", "test_images", "validation_images"),
        ("x_train", "x_test", "x_val"),
        ("train", "test", "val"),
    ],
)
def test_arrays_by_split(tmp_path, train_key, test_key, validation_key):
    path = tmp_path / "images.npz"
    expected = {"train": _numbered(5), "validation": _numbered(3, 5), "test": _numbered(2, 8)}
    labels = {"train_labels": np.arange(5), "y_train": np.arange(5)}
    keys = {train_key: "train", validation_key: "validation", test_key: "test"}
    np.savez(path, **{key: expected[split] for key, split in keys.items()}, **labels)
    arrays = load_array_file(path)
    assert list(arrays) == ["train", "validation", "test"]
    for split, images in expected.items():
        np.testing.assert_array_equal(arrays[split], images)


@pytest.mark.parametrize("key", ["images", "arr_0", None])
def test_a_single_array_is_split_identically_on_every_call(tmp_path, key):
    if key is None:
        path = tmp_path / "images.npy"
        np.save(path, _numbered(50))
    else:
        path = tmp_path / "images.npz"
        np.savez_compressed(path, **{key: _numbered(50)})
    arrays, again = load_array_file(path), load_array_file(str(path))
    assert {split: len(images) for split, images in arrays.items()} == {"train": 45, "test": 5}
    together = np.concatenate(list(arrays.values())).ravel()
    np.testing.assert_array_equal(np.sort(together), np.arange(50))
    assert (arrays["test"].ravel() != np.arange(45, 50)).any()
    np.testing.assert_array_equal(arrays["test"], again["test"])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros([4, 8, 8, 3])}, "images in .*a.npz of dtype uint8 .* got float64"),
        (
            {"x_train": np.zeros([4, 8, 8], np.uint8)},
            r"\[N, H, W, C\], got uint8 of shape \(4, 8, 8\).*Grayscale",
        ),
        ({"train": np.zeros([0, 8, 8, 1], np.uint8)}, r"\[N, H, W, C\], got .* \(0, 8, 8, 1\)\."),
        ({"pixels": np.zeros([4, 8, 8, 1], np.uint8)}, r"one of the names .* got .*'pixels'"),
        (
            {"train": np.zeros([4, 8, 8, 1], np.uint8), "test": np.zeros([4, 8, 9, 1], np.uint8)},
            r"images of one shape .*\(8, 8, 1\).*\(8, 9, 1\)",
        ),
        ({"images": np.array([None] * 4)}, "Cannot read .*a.npz: Object arrays"),
        ({"images": np.zeros([1, 8, 8, 1], np.uint8)}, "at least two images"),
    ],
)
def test_wrong_arrays(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_array_file(tmp_path / "a.npz")


@pytest.mark.parametrize("compressed", [False, True])
def test_truncated_archive(tmp_path, compressed):
    path = tmp_path / "images.npz"
    images = np.random.default_rng(0).integers(0, 256, [50, 8, 8, 3], np.uint8)
    (np.savez_compressed if compressed else np.savez)(path, images=images)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"Cannot read .*images.npz"):
        load_array_file(path)


def test_damaged_archive(tmp_path):
    path = tmp_path / "images.npz"
    images = np.random.default_rng(0).integers(0, 256, [50, 8, 8, 3], np.uint8)
    np.savez_compressed(path, images=images)
    content = bytearray(path.read_bytes())
    content[2000:2100] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"Cannot read .*images.npz"):
        load_array_file(path)


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_files_that_are_not_arrays(tmp_path, content):
    path = tmp_path / "images.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"Cannot read .*images.npy"):
        load_array_file(path)


def test_truncated_array(tmp_path):
    path = tmp_path / "images.npy"
    np.save(path, _numbered(50))
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"Cannot read .*images.npy"):
        load_array_file(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No file .*none.npz"):
        load_array_file(tmp_path / "none.npz")
