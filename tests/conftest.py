"""Quiet, seeded, and with as many threads as a test process has a fair claim to.

TensorFlow is imported late: the process that only hands out tests to workers needs none.
"""

import os

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

if "PYTEST_XDIST_WORKER" in os.environ:
    import tensorflow as tf

    # The workers share the cores: threads on top of processes only get in each other's way.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    import keras

    keras.utils.set_random_seed(0)
