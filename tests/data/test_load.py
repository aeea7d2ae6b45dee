import numpy as np
import pytest
import tensorflow as tf

from tfp_realnvp.data import load, load_arrays


def _images(image_data, count=-1):
    return np.concatenate([batch.numpy() for batch in image_data.dataset.take(count)])


@pytest.mark.parametrize(
    ("name", "num_values", "flip"), [("digits", 17, False), ("photos", 256, True)]
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_embedded_datasets(name, num_values, flip, split):
    arrays = load_arrays(name)
    image_data = load(name, batch_size=300, split=split)
    images = getattr(arrays, split)
    assert (image_data.name, image_data.split, image_data.splits) == (
        name,
        split,
        ("train", "test"),
    )
    assert (image_data.num_values, image_data.flip, image_data.evaluation_split) == (
        num_values,
        flip,
        "test",
    )
    assert image_data.image_shape == arrays.image_shape
    assert (image_data.num_images, image_data.steps_per_epoch) == (
        len(images),
        -(-len(images) // 300),
    )
    np.testing.assert_array_equal(_images(image_data), images)


def test_flips_by_default_and_by_argument():
    unflipped, flipped, default = (
        load("photos", batch_size=200, training=True, **kwargs)
        for kwargs in ({"flip": False}, {"flip": True}, {})
    )
    assert not unflipped.flip and flipped.flip and default.flip
    np.testing.assert_array_equal(_images(flipped, 1), _images(default, 1))
    plain, mirrored = _images(unflipped, 1), _images(flipped, 1)
    same = (plain == mirrored).all(axis=(1, 2, 3))
    assert 60 < same.sum() < 140
    np.testing.assert_array_equal(plain[~same], mirrored[~same][:, :, ::-1])


def test_validation_is_held_out_of_train():
    parts = [
        load("digits", batch_size=100, split=split, num_validation=300)
        for split in ("train", "validation", "test")
    ]
    assert [part.num_images for part in parts] == [1200, 300, 297]
    together = np.concatenate([_images(parts[0]), _images(parts[1])]).reshape(1500, -1)
    expected = load_arrays("digits").train.reshape(1500, -1)
    np.testing.assert_array_equal(
        together[np.lexsort(together.T)], expected[np.lexsort(expected.T)]
    )
    np.testing.assert_array_equal(
        _images(parts[1]),
        _images(load("digits", batch_size=7, split="validation", num_validation=300, seed=5)),
    )


def test_array_file(tmp_path):
    path = str(tmp_path / "images.npz")
    images = np.random.default_rng(0).integers(0, 256, [12, 4, 4, 3], np.uint8)
    np.savez(path, x_train=images[:8], x_test=images[8:])
    image_data = load(path, batch_size=4, split="test")
    assert (image_data.name, image_data.num_values, image_data.flip) == (path, 256, False)
    np.testing.assert_array_equal(_images(image_data), images[8:])
    assert load(path, batch_size=4, training=True, flip=True).steps_per_epoch == 2
    with pytest.raises(ValueError, match=r"\['train', 'test'\], got 'validation'"):
        load(path, batch_size=4, split="validation")


@pytest.mark.parametrize(
    ("kwargs", "policy"), [({}, "DATA"), ({"num_shards": 2, "shard_index": 1}, "OFF")]
)
def test_options(kwargs, policy):
    for deterministic in (True, False):
        image_data = load("digits", batch_size=8, deterministic=deterministic, **kwargs)
        options = image_data.dataset.options()
        assert options.deterministic is deterministic
        assert options.experimental_distribute.auto_shard_policy == getattr(
            tf.data.experimental.AutoShardPolicy, policy
        )


def test_an_iterator_continues_with_the_next_epoch():
    # In `fit` with steps_per_epoch, Keras takes the batches of all epochs from one iterator.
    digits = load("digits", batch_size=500, training=True)
    iterator = iter(digits.dataset)
    for epoch in range(3):
        drawn = np.concatenate([next(iterator).numpy() for _ in range(digits.steps_per_epoch)])
        one = load("digits", batch_size=500, training=True, epoch=epoch, num_epochs=1)
        np.testing.assert_array_equal(drawn, _images(one))


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("digits", {"split": "valid"}, r"a split of 'digits' in \['train', 'test'\], got 'valid'"),
        ("digits", {"split": "validation"}, "With num_validation above 0"),
        ("digits", {"num_validation": 1500}, "fewer than all of 1500 images, got 1500"),
        ("digits", {"image_size": 8}, "no image_size for 'digits'"),
        ("digits", {"batch_size": 1501, "training": True}, "full batch of 1501 .* got 1500"),
        ("digits", {"step": 3}, "only with training=True"),
        ("no_such_data", {}, "a dataset of .* got 'no_such_data'"),
    ],
)
def test_errors(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        load(name, **{"batch_size": 4, **kwargs})
