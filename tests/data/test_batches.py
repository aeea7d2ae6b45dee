"""Training batches: their order is a function of seed and step."""

import numpy as np
import pytest
import tensorflow as tf

from tfp_realnvp.data import batches

_FLIP = tf.image.stateless_random_flip_left_right


def _images(count=50):
    """Images with columns (index, 100, 200), which identify the image and its direction."""
    images = np.empty([count, 2, 3, 1], np.uint8)
    images[:, :, 0, 0] = np.arange(count)[:, None]
    images[:, :, 1:, 0] = [100, 200]
    return images


def _taken(number, **options):
    dataset = batches(_images(), **{"batch_size": 8, **options})
    return [batch.numpy() for batch in dataset.take(number)]


def _indices(taken):
    return np.concatenate(taken).min(axis=(1, 2, 3)).tolist()


def test_epochs_differ_and_contain_each_image_at_most_once():
    assert batches(_images(), batch_size=8).element_spec == tf.TensorSpec([8, 2, 3, 1], tf.uint8)
    taken = _taken(18)
    epochs = [_indices(taken[i : i + 6]) for i in (0, 6, 12)]
    for epoch in epochs:
        assert len(set(epoch)) == 48 and set(epoch) <= set(range(50))
        assert epoch != sorted(epoch)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert sorted(_indices(_taken(5, batch_size=10))) == list(range(50))


def test_batches_depend_on_seed_and_step_alone():
    options = {"augment": _FLIP, "seed": 5}
    tf.random.set_seed(1)
    whole = _taken(22, **options)
    tf.random.set_seed(2)
    np.testing.assert_array_equal(whole, _taken(22, **options))
    for step in (4, 6, 17):
        np.testing.assert_array_equal(_taken(4, step=step, **options), whole[step : step + 4])
    assert _indices(_taken(6, seed=6)) != _indices(_taken(6, seed=5))


def test_augmentation_differs_by_image_and_epoch():
    plain, flipped = (np.concatenate(_taken(24, augment=augment)) for augment in (None, _FLIP))
    mirrored = (flipped == plain[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (mirrored ^ (flipped == plain).all(axis=(1, 2, 3))).all()
    assert 70 <= mirrored.sum() <= 122
    epochs = mirrored.reshape(4, 48)
    assert (epochs[0] != epochs[1]).any()


@pytest.mark.parametrize(
    "condition",
    [np.arange(50, dtype=np.int32), np.arange(100, dtype=np.float32).reshape(50, 2)],
)
def test_conditions_stay_with_their_images(condition):
    dataset = batches(_images(), condition, batch_size=8, augment=_FLIP, step=3)
    for images, conditions in dataset.take(9).as_numpy_iterator():
        assert conditions.dtype == condition.dtype
        np.testing.assert_array_equal(condition[images.min(axis=(1, 2, 3))], conditions)


def test_workers_partition_each_batch():
    whole = _taken(16, batch_size=6, step=2)
    contexts = [tf.distribute.InputContext(3, worker, 3) for worker in range(3)]
    parts = [_taken(16, batch_size=6, step=2, context=context) for context in contexts]
    for step, batch in enumerate(whole):
        together = np.stack([part[step] for part in parts], axis=1)
        np.testing.assert_array_equal(together.reshape(batch.shape), batch)
    flipped = [_taken(16, batch_size=6, context=context, augment=_FLIP) for context in contexts]
    plain = [_taken(16, batch_size=6, context=context) for context in contexts]
    directions = np.array(flipped) != np.array(plain)
    assert (directions[0] != directions[1]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 51}, r"at least batch_size=51, got \[50\]"),
        ({"batch_size": 8, "condition": np.arange(49)}, r"equal length, .* got \[50, 49\]"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        batches(_images(), **options)
