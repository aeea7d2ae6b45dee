import numpy as np
import pytest
import tensorflow as tf

from tfp_realnvp.data import image_dataset


def _numbered(count, height=2, width=3, channels=1):
    """Images with rows (index, 100, ..., 100), which identify the image and its direction."""
    images = np.full([count, height, width, channels], 100, np.uint8)
    images[:, :, 0] = np.arange(count).reshape([count, 1, 1])
    return images


def _epoch(dataset):
    return np.concatenate([batch.numpy() for batch in dataset])


def _indices(images):
    return images.min(axis=(1, 2, 3))


def test_batches_are_the_images_in_order():
    images = _numbered(10)
    dataset = image_dataset(images, 4)
    assert [len(batch) for batch in dataset] == [4, 4, 2]
    assert dataset.element_spec == tf.TensorSpec([None, 2, 3, 1], tf.uint8)
    assert dataset.cardinality() == 3
    np.testing.assert_array_equal(_epoch(dataset), images)


@pytest.mark.parametrize("flip", [False, True])
def test_drop_remainder_makes_the_batch_size_static(flip):
    dataset = image_dataset(_numbered(10), 4, drop_remainder=True, flip=flip)
    assert dataset.element_spec == tf.TensorSpec([4, 2, 3, 1], tf.uint8)
    assert dataset.cardinality() == 2
    assert len(_epoch(dataset)) == 8


def test_shuffled_epochs_contain_all_images_in_different_orders():
    images = _numbered(50)
    dataset = image_dataset(images, 8, shuffle=True)
    first, second = _epoch(dataset), _epoch(dataset)
    for epoch in (first, second):
        np.testing.assert_array_equal(np.sort(_indices(epoch)), np.arange(50))
        assert (_indices(epoch) != np.arange(50)).any()
    assert (_indices(first) != _indices(second)).any()


def test_flips_mirror_half_of_the_images():
    images = _numbered(90)
    dataset = image_dataset(images, 16, flip=True)
    first, second = _epoch(dataset), _epoch(dataset)
    mirrored = first[:, 0, 0, 0] == 100
    expected = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    np.testing.assert_array_equal(first, expected)
    assert 25 <= mirrored.sum() <= 65
    assert (mirrored != (second[:, 0, 0, 0] == 100)).any()


def test_the_seed_determines_order_and_flips():
    images = _numbered(60)

    def epochs(seed):
        dataset = image_dataset(images, 7, shuffle=True, flip=True, seed=seed)
        return [_epoch(dataset), _epoch(dataset)]

    np.testing.assert_array_equal(epochs(3), epochs(3))
    assert (np.array(epochs(3)) != np.array(epochs(4))).any()


def test_repeat_continues_with_further_epochs():
    dataset = image_dataset(_numbered(10), 4, shuffle=True, flip=True, repeat=True)
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    batches = [batch.numpy() for batch in dataset.take(6)]
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2]
    first, second = np.concatenate(batches[:3]), np.concatenate(batches[3:])
    np.testing.assert_array_equal(np.sort(_indices(first)), np.arange(10))
    np.testing.assert_array_equal(np.sort(_indices(second)), np.arange(10))
    assert (first != second).any()


@pytest.mark.parametrize(
    ("images", "kwargs", "message"),
    [
        (np.zeros([3, 2, 2, 1], np.float32), {}, "uint8 array .* got float32"),
        (np.zeros([3, 2, 2], np.uint8), {}, r"\[N, H, W, C\], got uint8 of shape \(3, 2, 2\)"),
        (np.zeros([0, 2, 2, 1], np.uint8), {}, r"at least one .* of shape \(0, 2, 2, 1\)"),
        (np.zeros([3, 2, 2, 1], np.uint8), {"batch_size": 0}, "at least 1, .* got 0"),
        (np.zeros([3, 2, 2, 1], np.uint8), {"drop_remainder": True}, "at most 3, .* got 4"),
    ],
)
def test_errors(images, kwargs, message):
    with pytest.raises(ValueError, match=message):
        image_dataset(images, **{"batch_size": 4, **kwargs})
