import sys
from types import SimpleNamespace

import flow_testing as ft
import numpy as np
import pytest
from sklearn import datasets

from tfp_realnvp.data import load_arrays


@pytest.mark.parametrize(
    ("name", "train_shape", "test_shape", "num_values", "flip"),
    [
        ("digits", (1500, 8, 8, 1), (297, 8, 8, 1), 17, False),
        ("photos", (13440, 32, 32, 3), (450, 32, 32, 3), 256, True),
    ],
)
def test_shapes_and_values(name, train_shape, test_shape, num_values, flip):
    arrays, again = load_arrays(name), load_arrays(name)
    ft.assert_equal((arrays.train, arrays.test), (again.train, again.test))
    assert (arrays.name, arrays.num_values, arrays.flip) == (name, num_values, flip)
    assert (arrays.train.shape, arrays.test.shape) == (train_shape, test_shape)
    assert arrays.image_shape == train_shape[1:]
    for images in (arrays.train, arrays.test):
        assert images.dtype == np.uint8 and images.min() == 0 and images.max() == num_values - 1


def test_the_representation_has_shapes():
    arrays = load_arrays("digits")
    text = "ImageArrays(name='digits', train=uint8 [1500, 8, 8, 1], test=uint8 [297, 8, 8, 1], num_"
    assert repr(arrays).startswith(text)
    assert "train_labels=int32 [1500]" in repr(arrays) and "validation=None" in repr(arrays)


def test_digits_are_all_of_scikit_learns_digits():
    digits = load_arrays("digits")
    images = np.concatenate([digits.train, digits.test])
    expected = datasets.load_digits().images.astype(np.uint8)
    np.testing.assert_array_equal(ft.by_rows(images), ft.by_rows(expected))


@pytest.mark.parametrize("split", ["train", "test"])
def test_photos_are_patches_of_their_own_region(split, monkeypatch):
    # Pixels (column / 4, row / 4, photograph), which identify their position.
    row, column = np.indices([427, 640])
    pictures = [np.stack([column // 4, row // 4, np.full_like(row, k)], -1) for k in (0, 1)]
    images = [picture.astype(np.uint8) for picture in pictures]
    monkeypatch.setattr(datasets, "load_sample_images", lambda: SimpleNamespace(images=images))

    patches = getattr(load_arrays("photos"), split)
    first, last = {"train": (0, 448), "test": (480, 640)}[split]
    assert patches[..., 0].min() == first // 4
    assert patches[..., 0].max() == (last - 1) // 4
    assert set(patches[:, 0, 0, 2]) == {0, 1}
    # Each coordinate increases along its own axis and is constant along the other.
    assert (patches[:, 0, :, 0] == patches[:, -1, :, 0]).all()
    assert (patches[:, :, 0, 1] == patches[:, :, -1, 1]).all()
    assert set(patches[:, 0, -1, 0] - patches[:, 0, 0, 0]) <= {7, 8}
    assert set(patches[:, -1, 0, 1] - patches[:, 0, 0, 1]) <= {7, 8}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar11", {}, r"'digits' or 'photos', an \.npz or \.npy file, .* got 'cifar11'"),
        ("digits", {"image_size": 8}, "image_size only for a folder of images, got 'digits'"),
    ],
)
def test_errors(name, options, message):
    with pytest.raises(ValueError, match=message):
        load_arrays(name, **options)


def test_missing_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="`pip install scikit-learn`"):
        load_arrays("digits")


def test_held_out_images():
    digits = load_arrays("digits")
    held_out = digits.hold_out(300)
    assert (len(held_out.train), len(held_out.train_labels)) == (1200, 1200)
    np.testing.assert_array_equal(held_out.validation, digits.hold_out(300).validation)
    together = np.concatenate([held_out.train, held_out.validation])
    np.testing.assert_array_equal(ft.by_rows(together), ft.by_rows(digits.train))
    np.testing.assert_array_equal(held_out.test, digits.test)
    known = dict(zip(map(bytes, digits.train), digits.train_labels, strict=True))
    labels = [known[bytes(image)] for image in held_out.validation]
    np.testing.assert_array_equal(labels, held_out.validation_labels)
    photos = load_arrays("photos").hold_out(40)
    assert len(photos.validation) == 40 and len(photos.train) == 13_400
    assert photos.train_labels is None and photos.validation_labels is None


def test_wrong_numbers_of_held_out_images():
    digits = load_arrays("digits")
    with pytest.raises(ValueError, match="fewer than all of 1500 images, got 1500"):
        digits.hold_out(1500)
    with pytest.raises(ValueError, match="without a validation split, got 'digits'"):
        digits.hold_out(5).hold_out(5)
