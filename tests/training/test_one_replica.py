"""Strategies with a single replica train as without a strategy."""

import contextlib
import functools

import flow_testing as ft
import keras
import pytest
import tensorflow as tf

import tfp_realnvp as tfr

_SHAPE = (4, 4, 1)

_STRATEGIES = {
    "mirrored": lambda: tf.distribute.MirroredStrategy(["CPU:0"]),
    "one device": lambda: tf.distribute.OneDeviceStrategy("CPU:0"),
    "multi-worker": lambda: tf.distribute.MultiWorkerMirroredStrategy(),
}
# Muon is `FusedAdam` for all variables but kernels.
_OPTIMIZERS = {"muon": tfr.Muon, "sgd": lambda: keras.optimizers.SGD(1e-4)}


@functools.cache
def _trained(strategy, optimizer):
    keras.utils.set_random_seed(0)
    with _STRATEGIES[strategy]().scope() if strategy else contextlib.nullcontext():
        # The network has moving statistics.
        flow = ft.flow_distribution(_SHAPE, num_scales=1, num_couplings=1, num_blocks=0)
        model = ft.compiled(flow, _OPTIMIZERS[optimizer]())
    model.fit(ft.grey_levels(12), batch_size=4, shuffle=False, verbose=0)
    assert model.optimizer.iterations.numpy() == 3
    return [variable.numpy() for variable in model.trainable_variables]


@pytest.mark.parametrize(
    ("strategy", "optimizer"),
    [("multi-worker", "sgd"), *ft.full(("mirrored", "muon"), ("one device", "sgd"))],
)
def test_one_replica(strategy, optimizer):
    expected, actual = _trained(None, optimizer), _trained(strategy, optimizer)
    ft.assert_close(actual, expected, rtol=1e-4, atol=1e-6)
