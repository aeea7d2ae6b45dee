"""Quiet, seeded, and with as many threads as a test process has a fair claim to."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import pytest
import tensorflow as tf

if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores: threads on top of processes only get in each other's way.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)
