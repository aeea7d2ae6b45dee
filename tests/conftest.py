"""Quiet, seeded, and with as many threads as a test process has a fair claim to.

TensorFlow is imported late: the process that only hands out tests to workers needs none.
"""

import os
import sys

import pytest

# pytest imports each test file by its path alone: this makes the common helpers importable.
sys.path.insert(0, os.path.dirname(__file__))

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
