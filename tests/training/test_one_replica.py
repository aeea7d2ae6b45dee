"""Strategies with a single replica train as without a strategy."""

import functools

import flow_testing as ft
import keras
import pytest
import strategy_testing as st
import tensorflow as tf

import tfp_realnvp as tfr

_STRATEGIES = {
    "mirrored": lambda: tf.distribute.MirroredStrategy(["CPU:0"]),
    "one device": lambda: tf.distribute.OneDeviceStrategy("CPU:0"),
    "multi-worker": lambda: tf.distribute.MultiWorkerMirroredStrategy(),
}
# Muon is `FusedAdam` for all variables but kernels.
_OPTIMIZERS = {"muon": tfr.Muon, "sgd": lambda: keras.optimizers.SGD(1e-4)}


@functools.cache
def _trained(strategy, optimizer):
    model = st.make_model(strategy and _STRATEGIES[strategy](), _OPTIMIZERS[optimizer])
    model.fit(ft.grey_levels(12), batch_size=4, shuffle=False, verbose=0)
    assert model.optimizer.iterations.numpy() == 3
    return ft.values(model.trainable_variables)


@pytest.mark.parametrize(
    ("strategy", "optimizer"),
    [("multi-worker", "sgd"), *ft.full(("mirrored", "muon"), ("one device", "sgd"))],
)
def test_one_replica(strategy, optimizer):
    expected, actual = _trained(None, optimizer), _trained(strategy, optimizer)
    ft.assert_close(actual, expected, rtol=1e-4, atol=1e-6)
