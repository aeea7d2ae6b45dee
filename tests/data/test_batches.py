"""Batches from memory and from files have the same properties."""

import numpy as np
import pytest
import tensorflow as tf

from tfp_realnvp.data.batches import BatchPlan, array_batches
from tfp_realnvp.data.image_source import ImageSource, read_arrays, stream_batches

_NUM_IMAGES = 50


def _images(count=_NUM_IMAGES):
    """Images with columns (index, 100, 200), which identify the image and its direction."""
    images = np.empty([count, 2, 3, 1], np.uint8)
    images[:, :, 0, 0] = np.arange(count)[:, None]
    images[:, :, 1:, 0] = [100, 200]
    return images


def _source(count=_NUM_IMAGES, known=True, augment=None):
    encoded = tf.constant([tf.io.encode_png(image).numpy() for image in _images(count)])

    def records(seed):
        dataset = tf.data.Dataset.from_tensor_slices(encoded)
        return dataset if seed is None else dataset.shuffle(20, seed=seed)

    return ImageSource(
        num_images=count if known else None,
        image_shape=(2, 3, 1),
        records=records,
        decode=lambda record: tf.io.decode_png(record, channels=1),
        prepare=lambda image: image,
        augment=augment,
    )


def _from_memory(plan, count=_NUM_IMAGES):
    return array_batches(_images(count), plan)


def _from_files(plan, count=_NUM_IMAGES):
    return stream_batches(_source(count), plan)


def _from_files_with_unknown_size(plan, count=_NUM_IMAGES):
    return stream_batches(_source(count, known=False), plan)


pytestmark = pytest.mark.parametrize("make", [_from_memory, _from_files])


def _training(**kwargs):
    return BatchPlan(**{"batch_size": 8, "training": True, **kwargs})


def _batches(dataset, count=None):
    return [batch.numpy() for batch in (dataset if count is None else dataset.take(count))]


def _indices(batches):
    return np.concatenate(batches).min(axis=(1, 2, 3)).tolist()


def test_evaluation_is_one_pass_in_order(make):
    batches = _batches(make(BatchPlan(8)))
    assert [len(batch) for batch in batches] == [8] * 6 + [2]
    np.testing.assert_array_equal(np.concatenate(batches), _images())


def test_training_epochs_differ_and_contain_each_image_at_most_once(make):
    dataset = make(_training())
    assert dataset.element_spec == tf.TensorSpec([8, 2, 3, 1], tf.uint8)
    batches = _batches(dataset, 18)
    epochs = [_indices(batches[i : i + 6]) for i in (0, 6, 12)]
    for epoch in epochs:
        assert len(set(epoch)) == 48 and set(epoch) <= set(range(50))
        assert epoch != sorted(epoch)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_a_full_epoch_contains_every_image(make):
    assert sorted(_indices(_batches(make(_training(batch_size=10, num_epochs=1))))) == list(
        range(50)
    )


def test_number_of_epochs(make):
    assert len(_batches(make(_training(num_epochs=2)))) == 12
    assert len(_batches(make(_training(num_epochs=2, epoch=3, step=4)))) == 8


def test_batches_depend_only_on_seed_epoch_and_step(make):
    tf.random.set_seed(1)
    whole = _batches(make(_training(flip=True, seed=5)), 22)
    np.testing.assert_array_equal(whole, _batches(make(_training(flip=True, seed=5)), 22))
    tf.random.set_seed(2)
    np.testing.assert_array_equal(whole, _batches(make(_training(flip=True, seed=5)), 22))
    for epoch, step in [(0, 0), (0, 4), (1, 0), (2, 5), (0, 13)]:
        resumed = _batches(make(_training(flip=True, seed=5, epoch=epoch, step=step)), 4)
        start = 6 * epoch + step
        np.testing.assert_array_equal(resumed, whole[start : start + 4])
    other = _batches(make(_training(flip=True, seed=6)), 20)
    assert _indices(other[:6]) != _indices(whole[:6])


def test_a_second_iteration_is_equal(make):
    dataset = make(_training(flip=True))
    np.testing.assert_array_equal(_batches(dataset, 7), _batches(dataset, 7))


def test_flips_change_only_the_direction(make):
    plain, flipped = (
        np.concatenate(_batches(make(_training(flip=flip)), 24)) for flip in (False, True)
    )
    np.testing.assert_array_equal(plain[:, 0, 1], np.full([192, 1], 100))
    mirrored = (flipped == plain[:, :, ::-1]).all(axis=(1, 2, 3))
    unchanged = (flipped == plain).all(axis=(1, 2, 3))
    assert (mirrored ^ unchanged).all()
    assert 70 <= mirrored.sum() <= 122
    np.testing.assert_array_equal(
        np.where(mirrored[:, None, None, None], flipped[:, :, ::-1], flipped), plain
    )
    epochs = mirrored.reshape(4, 48)
    assert (epochs[0] != epochs[1]).any()


def test_evaluation_never_flips(make):
    np.testing.assert_array_equal(
        np.concatenate(_batches(make(BatchPlan(8, flip=True)))), _images()
    )


def test_shards_partition_each_step(make):
    whole = _batches(make(_training(batch_size=6)), 16)
    shards = [
        _batches(make(_training(batch_size=2, num_shards=3, shard_index=i)), 16) for i in range(3)
    ]
    for step, batch in enumerate(whole):
        together = np.stack([shard[step] for shard in shards], 1).reshape(batch.shape)
        np.testing.assert_array_equal(together, batch)


def test_shards_partition_evaluation(make):
    shards = [
        np.concatenate(_batches(make(BatchPlan(4, num_shards=3, shard_index=i)))) for i in range(3)
    ]
    assert [len(shard) for shard in shards] == [17, 17, 16]
    assert sorted(index for shard in shards for index in _indices([shard])) == list(range(50))


def test_a_resumed_shard(make):
    plan = {"batch_size": 4, "num_shards": 2, "shard_index": 1, "flip": True}
    whole = _batches(make(_training(**plan)), 12)
    np.testing.assert_array_equal(_batches(make(_training(**plan, epoch=1, step=2)), 4), whole[8:])


def test_too_few_images(make):
    with pytest.raises(ValueError, match=r"at least one full batch of 8 .* got 5 images"):
        make(_training(), count=5)
    assert len(_batches(make(BatchPlan(8), count=5))) == 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, "batch_size of at least 1, got 0"),
        ({"num_shards": 0}, "num_shards of at least 1, got 0"),
        ({"num_shards": 2, "shard_index": 2}, r"shard_index in \[0, 2\), got 2"),
        ({"seed": -1}, "seed in .* got -1"),
        ({"epoch": -1}, "epoch of at least 0, got -1"),
        ({"num_epochs": 0}, "num_epochs of at least 1 or None, got 0"),
        ({"training": False, "step": 1}, "only with training=True"),
    ],
)
def test_invalid_plans(make, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(_training(**kwargs))


def test_a_source_of_unknown_size(make):
    del make
    make = _from_files_with_unknown_size
    known = _batches(_from_files(_training()), 14)
    np.testing.assert_array_equal(_batches(make(_training()), 14), known)
    np.testing.assert_array_equal(_batches(make(_training(epoch=1, step=2)), 3), known[8:11])


def test_augmentation_has_a_seed_for_each_image_and_epoch(make):
    del make

    def augment(image, seed):
        noise = tf.random.stateless_uniform([], seed, maxval=256, dtype=tf.int32)
        return tf.fill(tf.shape(image), tf.cast(noise, tf.uint8))

    batches = _batches(stream_batches(_source(augment=augment), _training()), 12)
    values = np.stack(batches)[:, :, 0, 0, 0]
    assert len(set(values.ravel().tolist())) > 60
    assert (values[:6] != values[6:]).mean() > 0.9
    np.testing.assert_array_equal(read_arrays(_source(augment=augment)), _images())
