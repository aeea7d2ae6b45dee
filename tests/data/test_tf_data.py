"""Datasets run without autotuning, whose thread can delay the end of `fit`."""

import time

import numpy as np
import pytest
import tensorflow as tf

from tfp_realnvp import data
from tfp_realnvp.internal.tf_data import without_autotune


def _batches():
    return data.batches(np.zeros([20, 8, 8, 1], np.uint8), batch_size=4)


def test_batches_are_not_autotuned():
    assert _batches().options().autotune.enabled is False


@pytest.mark.parametrize("enabled", [None, False, True])
def test_options_of_the_user_are_kept(enabled):
    options = tf.data.Options()
    options.deterministic = False
    if enabled is not None:
        options.autotune.enabled = enabled
    result = without_autotune(tf.data.Dataset.range(3).with_options(options)).options()
    assert result.autotune.enabled is bool(enabled)
    assert result.deterministic is False


def test_iterators_end_immediately_after_slow_steps():
    dataset = _batches()
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
