"""Quiet, seeded, and with as many threads as a test process has a fair claim to.

TensorFlow is imported late: the process that only hands out tests to workers needs none.
"""

import os
import pathlib
import sys

import pytest

# pytest imports each test file by its path alone: this makes the common helpers importable.
sys.path.insert(0, os.path.dirname(__file__))

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# What XLA computes is tested, and not how well LLVM optimizes it, which takes half of the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

if "PYTEST_XDIST_WORKER" in os.environ:
    import tensorflow as tf

    # The workers share the cores: threads on top of processes only get in each other's way.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


# What `make check` runs, and `make test-versions` with other releases of TensorFlow and Keras.
_CORE = (
    "bijectors/test_act_norm.py",
    "bijectors/test_affine_coupling.py",
    "bijectors/test_batch_normalization.py",
    "bijectors/test_masks.py",
    "bijectors/test_matrix.py",
    "bijectors/test_one_pass.py",
    "bijectors/test_squeeze.py",
    "bijectors/test_traps.py",
    "internal/",
    "networks/",
    "serialization/",
    "training/test_flow_model.py",
    "training/test_optimizers.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks the tests in `_CORE` as `core`."""
    folder = pathlib.Path(__file__).parent
    for item in items:
        if item.path.relative_to(folder).as_posix().startswith(_CORE):
            item.add_marker("core")


@pytest.fixture(autouse=True)
def _seeded():
    import keras

    keras.utils.set_random_seed(0)
