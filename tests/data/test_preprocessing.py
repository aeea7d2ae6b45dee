"""Preprocessing against Pillow, which enlarges to a common multiple and averages blocks."""

import fractions

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfp_realnvp.data import preprocessing


def _image(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, [height, width, channels], np.uint8)


def _resize_with_pillow(image, height, width):
    vertical = fractions.Fraction(image.shape[0], height)
    horizontal = fractions.Fraction(image.shape[1], width)
    enlarged = Image.fromarray(image).resize(
        (image.shape[1] * horizontal.denominator, image.shape[0] * vertical.denominator),
        Image.Resampling.NEAREST,
    )
    return np.asarray(enlarged.reduce((horizontal.numerator, vertical.numerator)))


def _resize_with_numpy(image, height, width):
    def covered(old, new):
        edges = np.arange(new + 1) * old / new
        pixels = np.arange(old)
        upper = np.minimum(edges[1:, None], pixels + 1)
        lower = np.maximum(edges[:-1, None], pixels)
        return np.maximum(upper - lower, 0) * new / old

    rows, columns = covered(image.shape[0], height), covered(image.shape[1], width)
    return np.rint(np.einsum("ih,hwc,jw->ijc", rows, image.astype(float), columns, optimize=True))


def _assert_within_one_level(actual, expected):
    actual = np.asarray(actual)
    assert actual.dtype == np.uint8
    difference = np.abs(actual.astype(int) - np.asarray(expected).astype(int))
    assert difference.shape == actual.shape
    assert difference.max() <= 1, difference.max()
    # Halves can be rounded up or down.
    assert (difference > 0).mean() < 0.2


@pytest.mark.parametrize("reference", [_resize_with_numpy, _resize_with_pillow])
@pytest.mark.parametrize(
    ("old", "new"),
    [((148, 148), (64, 64)), ((256, 320), (96, 120)), ((30, 21), (10, 14)), ((9, 7), (12, 14))],
)
def test_resize_area(reference, old, new):
    image = _image(*old)
    actual = preprocessing.resize_area(tf.constant(image), *new)
    assert actual.shape == (*new, 3)
    _assert_within_one_level(actual, reference(image, *new))


@pytest.mark.parametrize("reference", [_resize_with_numpy, _resize_with_pillow])
def test_celeb_a(reference):
    image = _image(218, 178)
    expected = reference(image[40:188, 15:163], 64, 64)
    _assert_within_one_level(preprocessing.prepare_celeb_a(tf.constant(image)), expected)


def test_celeb_a_with_another_shape():
    with pytest.raises(tf.errors.InvalidArgumentError, match="218"):
        preprocessing.prepare_celeb_a(tf.zeros([178, 218, 3], tf.uint8))


@pytest.mark.parametrize(
    ("old", "resized"),
    [
        ((256, 320), (96, 120)),
        ((341, 256), (128, 96)),
        ((257, 256), (96, 96)),
        ((47, 17), (265, 96)),
    ],
)
def test_lsun_in_evaluation_is_the_center(old, resized):
    image = _image(*old)
    expected = _resize_with_numpy(image, *resized)
    top, left = (resized[0] - 64) // 2, (resized[1] - 64) // 2
    actual = preprocessing.prepare_lsun(tf.constant(image))
    _assert_within_one_level(actual, expected[top : top + 64, left : left + 64])


def test_lsun_in_training_is_a_random_crop():
    image = tf.constant(_image(256, 341))
    prepare = tf.function(preprocessing.prepare_lsun)
    resized = preprocessing.resize_smallest_side(image, 96).numpy()
    assert resized.shape == (96, 128, 3)
    windows = np.lib.stride_tricks.sliding_window_view(resized, (64, 64), (0, 1))
    positions = set()
    for seed in range(40):
        crop = prepare(image, tf.constant([seed, 7])).numpy()
        again = prepare(image, tf.constant([seed, 7])).numpy()
        np.testing.assert_array_equal(crop, again)
        equal = (np.moveaxis(windows, 2, -1) == crop).all(axis=(2, 3, 4))
        positions.update(zip(*np.nonzero(equal), strict=True))
    rows, columns = zip(*positions, strict=True)
    assert len(positions) > 30
    assert min(rows) < 8 and max(rows) > 24
    assert min(columns) < 16 and max(columns) > 48


@pytest.mark.parametrize("size", [32, 64])
def test_imagenet_is_unchanged(size):
    image = _image(size, size)
    actual = preprocessing.prepare_square(tf.constant(image), size)
    np.testing.assert_array_equal(actual, image)


def test_images_of_another_size_are_resized_and_cropped():
    image = _image(43, 33)
    expected = _resize_with_numpy(image, 42, 32)[5:37]
    _assert_within_one_level(preprocessing.prepare_square(tf.constant(image), 32), expected)


def test_unknown_sizes():
    prepare = tf.function(
        preprocessing.prepare_lsun, input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)]
    )
    image = tf.constant(_image(100, 130))
    assert prepare.get_concrete_function().output_shapes == (64, 64, 3)
    np.testing.assert_array_equal(prepare(image), preprocessing.prepare_lsun(image))
