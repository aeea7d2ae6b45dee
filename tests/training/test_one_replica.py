"""Strategies with a single replica train as without a strategy."""

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_realnvp as tfr

_SHAPE = (4, 4, 1)

_STRATEGIES = {
    "mirrored": lambda: tf.distribute.MirroredStrategy(["CPU:0"]),
    "one device": lambda: tf.distribute.OneDeviceStrategy("CPU:0"),
    "multi-worker": lambda: tf.distribute.MultiWorkerMirroredStrategy(),
}


def _trained(strategy, optimizer):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        flow = ft.flow_distribution(_SHAPE, num_scales=1, num_couplings=1)
        model = tfr.FlowModel(flow)
        model.compile(optimizer())
    model.fit(ft.grey_levels(12), batch_size=4, shuffle=False, verbose=0)
    assert model.optimizer.iterations.numpy() == 3
    return [variable.numpy() for variable in model.trainable_variables]


@pytest.mark.parametrize("name", _STRATEGIES)
def test_one_replica(name):
    # Muon is `FusedAdam` for all variables but kernels.
    for optimizer in (tfr.Muon, lambda: keras.optimizers.SGD(1e-4)):
        expected = _trained(tf.distribute.get_strategy(), optimizer)
        actual = _trained(_STRATEGIES[name](), optimizer)
        for one, other in zip(actual, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
