"""Datasets run without autotuning, whose thread can delay the end of `fit`."""

import time

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from tfp_realnvp import data
from tfp_realnvp.internal.tf_data import without_autotune

_IMAGES = np.arange(20 * 64, dtype=np.uint32).astype(np.uint8).reshape([20, 8, 8, 1])


def _load(name, **kwargs):
    return data.load(str(name), **{"batch_size": 4, **kwargs}).dataset


def _arrays(tmp_path, **kwargs):
    np.save(tmp_path / "images.npy", _IMAGES)
    return _load(tmp_path / "images.npy", **kwargs)


def _folder(tmp_path, **kwargs):
    for number, image in enumerate(_IMAGES):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{number}.png")
    return _load(tmp_path, cache_bytes=0, **kwargs)


def _tfds(tmp_path, **kwargs):
    with tfds.testing.mock_data(num_examples=20):
        return _load("mnist", cache_bytes=0, **kwargs)


_SOURCES = pytest.mark.parametrize("make", [_arrays, _folder, _tfds])


@_SOURCES
@pytest.mark.parametrize("training", [False, True])
def test_load_turns_autotuning_off(make, training, tmp_path):
    assert make(tmp_path, training=training).options().autotune.enabled is False


@pytest.mark.parametrize("enabled", [None, False, True])
def test_options_of_the_user_are_kept(enabled):
    options = tf.data.Options()
    options.deterministic = False
    if enabled is not None:
        options.autotune.enabled = enabled
    result = without_autotune(tf.data.Dataset.range(3).with_options(options)).options()
    assert result.autotune.enabled is bool(enabled)
    assert result.deterministic is False


def test_iterators_end_immediately_after_slow_steps(tmp_path):
    dataset = _arrays(tmp_path, training=True)
    # The destructor of an autotuned iterator waits only now and then.
    iterators = [iter(dataset) for _ in range(50)]
    for _ in range(4):
        for iterator in iterators:
            next(iterator)
        time.sleep(0.35)
    del iterator
    while iterators:
        start = time.monotonic()
        iterators.pop()
        assert time.monotonic() - start < 0.3
