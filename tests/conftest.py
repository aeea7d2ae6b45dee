"""Quiet, seeded, and with as many threads as a test process has a fair claim to.

TensorFlow is imported late: the process that only hands out tests to workers needs none.
"""

import functools
import gc
import os
import sys
import zlib
from unittest import mock

import pytest

# pytest imports each test file by its path alone: this makes the common helpers importable.
sys.path.insert(0, os.path.dirname(__file__))

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# What XLA computes is tested, and not how well LLVM optimizes it, which takes half of the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# Without it scikit-learn skips one of its checks of estimators.
os.environ.setdefault("SCIPY_ARRAY_API", "1")

if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores: threads on top of processes only get in each other's way, and
    # those of OpenMP, in NumPy and scikit-learn, wait for each other in busy loops.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


@pytest.fixture(autouse=True)
def _seeded(request):
    """Seeds all random numbers, and keeps TensorFlow's eager kernels.

    TensorFlow forgets them with each new seed, since those of random operations have a state. To
    make them again took half of the time of many tests. So each test has a seed of its own: then no
    other test has used the kernels of its random operations.
    """
    import keras
    import tensorflow as tf
    from tensorflow.python import pywrap_tfe

    with mock.patch.object(pywrap_tfe, "TFE_ContextClearCaches"):
        keras.utils.set_random_seed(0)
        tf.random.set_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Runs TensorFlow functions eagerly in tests with the marker `eager`."""
    import tensorflow as tf

    eager = item.get_closest_marker("eager") and not item.get_closest_marker("graph")
    tf.config.run_functions_eagerly(bool(eager))


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish():
    # Imported modules stay: the garbage collector need not scan their objects.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _nothing_is_kept(request):
    """Forgets the models that a module's functions have cached: a process has many modules."""
    yield
    for value in vars(request.module).values():
        if hasattr(value, "cache_clear") and value.__module__ == request.module.__name__:
            value.cache_clear()
    gc.collect()


@pytest.fixture(scope="module")
def no_graph_optimizer():
    """Runs without TensorFlow's optimizations of graphs, as few tests may.

    They take longer than they save in the few steps of an example. All other tests run with them,
    as users do.
    """
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})


@pytest.fixture
def small_compact(monkeypatch):
    """Gives `RealNVPImage.compact` one coupling of each kind, for scripts that use its defaults."""
    import tfp_realnvp as tfr

    small = functools.partial(tfr.RealNVPImage.compact, num_couplings=1)
    monkeypatch.setattr(tfr.RealNVPImage, "compact", small)


@pytest.fixture
def only_log_prob(monkeypatch, request):
    """Exports `log_prob` alone: tracing the other functions takes most of the time."""
    from tfp_realnvp.saving import saved_model

    functions = saved_model.ServedFlow.functions
    names = getattr(request, "param", ["log_prob", "log_prob_uint8"])
    few = lambda flow: {name: f for name, f in functions(flow).items() if name in names}  # noqa: E731
    monkeypatch.setattr(saved_model.ServedFlow, "functions", few)
