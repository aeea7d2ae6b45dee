"""What two replicas of one process do, beside what one device does.

A process of its own, since logical devices are made once; and one strategy for all, since those of
a process share the numbers of their messages.
"""

import tempfile
import time
from unittest import mock

import flow_testing as ft
import keras
import numpy as np
import pytest
import strategy_testing as st
import tensorflow as tf
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr
from tfp_realnvp.training.fused_adam import _LARGE

_ONE = tf.distribute.get_strategy()


def _state(model):
    return ft.values([*model.distribution.variables, *model.optimizer.variables])


def _assert_same(actual, expected):
    ft.assert_close(_state(actual), _state(expected), rtol=1e-3, atol=1e-5)


def _fit(strategy, images, labels=None, *, batch_size=8, epochs=1, **options):
    # On one device, so few steps take less time than a graph of them.
    model = st.make_model(strategy, run_eagerly=strategy is _ONE, **options)
    model.fit(images, labels, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0)
    return model


def training_and_evaluation(two):
    with tempfile.TemporaryDirectory() as alone, tempfile.TemporaryDirectory() as mirrored:
        expected, actual = st.train(_ONE, alone), st.train(two, mirrored)
        assert expected["steps"] == st.STEPS
        st.assert_same(actual, expected)
        # Its checkpoint is one for any number of devices.
        model = st.make_model(optimizer=st.adam)
        assert tfr.TrainingCheckpoint(mirrored, model).restore()
        np.testing.assert_allclose(
            model.predict(ft.grey_levels(40)[:9], batch_size=8, verbose=0),
            expected["predict"],
            rtol=1e-4,
        )


def optimizers(two):
    # Clipped to a norm that each gradient exceeds, also that of a half batch. A large ε keeps Adam
    # from making a step of each rounding error. Muon is `FusedAdam` for all but kernels.
    for make, large in (
        (lambda: keras.optimizers.SGD(1.0, momentum=0.5, global_clipnorm=1e-2), _LARGE),
        (lambda: tfr.Muon(1e-2, epsilon=1e-2, global_clipnorm=1e-2), _LARGE),
        # Large variables are updated in place. Here each of two elements or more is large.
        (lambda: tfr.FusedAdam(1e-2, epsilon=1e-2, weight_decay=0.1), 2),
    ):
        options = {"optimizer": make, "network_fn": ft.convolution}
        with mock.patch("tfp_realnvp.training.fused_adam._LARGE", large):
            actual, expected = (_fit(s, ft.grey_levels(24), **options) for s in (two, _ONE))
        _assert_same(actual, expected)
    assert any(len(v.shape) == 4 for v in actual.optimizer.variables)


def conditions_and_recomputed_activations(two):
    # Which conditions are left out is the same on any number of devices. The network has moving
    # statistics, which a recomputed pass assigns.
    options = {"num_classes": 5, "condition_dropout": 0.4, "embedding_size": 6}
    options["optimizer"] = lambda: keras.optimizers.SGD(1e-3)
    images, labels = ft.grey_levels(24), np.arange(24) % 5
    models = [
        _fit(strategy, images, labels, recompute=strategy is two, **options)
        for strategy in (_ONE, two)
    ]
    _assert_same(*models)
    # A last batch of a single image, which leaves a replica without any.
    images, labels = images[:9], labels[:9]
    expected, actual = (
        model.predict((images, labels), batch_size=8, verbose=0) for model in models
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


def weights_of_events(two):
    # In the first batch all weight is on one replica; the last batch is smaller.
    images = ft.grey_levels(14)
    weights = np.array([1, 0, 3, 2, 0, 0, 0, 0, 1, 2, 0, 1, 1, 2])
    data = {"image": images, "sample_weight": 1e-4 * weights}
    options = {"optimizer": lambda: keras.optimizers.SGD(1e-3), "dequantize": False, "epochs": 2}
    options["dtype"] = tf.float64
    for x, size in ((data, 8), (ft.dataset(data, 8), None)):
        models = [_fit(strategy, x, batch_size=size, **options) for strategy in (_ONE, two)]
        ft.assert_close(*map(_state, models), rtol=1e-9, atol=1e-12)
    repeated = np.repeat(images, weights, axis=0)
    expected = models[0].evaluate(repeated, batch_size=4, verbose=0)
    for model in models:
        loss = model.evaluate(images, sample_weight=weights, batch_size=8, verbose=0)
        np.testing.assert_allclose(loss, expected, rtol=1e-4)


class _Spread(tfr.FlowModel):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        latents = self.distribution.bijector.inverse(tf.cast(x, tf.float32) + 0.5)
        return loss + 1000 + tf.reduce_mean(latents**2)


def hooks_of_a_subclass(two):
    images = ft.grey_levels(16)
    options = {"optimizer": lambda: keras.optimizers.SGD(1e-3), "dequantize": False}
    for kind in (st.OwnStep, _Spread):
        models = [_fit(strategy, images, kind=kind, **options) for strategy in (_ONE, two)]
        _assert_same(*models)
    logs = [model.history.history for model in models]
    np.testing.assert_allclose(logs[1]["loss"], logs[0]["loss"], rtol=1e-4)
    assert logs[0]["loss"][0] > 1000
    # The devices make the moving statistics of the whole batch, so that evaluations agree too.
    losses = [model.evaluate(images, batch_size=8, verbose=0) for model in models]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


def first_batch_of_act_norm(two):
    options = {"normalization": "actnorm", "optimizer": lambda: keras.optimizers.SGD(0.0)}
    options["network_fn"] = ft.convolution
    states = []
    for strategy in (_ONE, two):
        model = st.make_model(strategy, run_eagerly=strategy is _ONE, **options)
        ft.unset(model.distribution)
        model.fit(ft.grey_levels(7), batch_size=7, verbose=0)
        states.append(_state(model))
    ft.assert_close(*states, rtol=1e-3, atol=1e-4)


def columns_that_are_constant_or_far_from_zero(two):
    rows = ft.normal([16, 3]).numpy() * [1, 0, 1] + [0, 0.1, 1e4]
    scales = []
    for strategy in (_ONE, two):
        with strategy.scope():
            norm = tfr.ActNorm(event_ndims=1, num_channels=3)
            flow = tfr.FlowChain([norm], event_ndims=1)
            model = tfr.FlowModel(tfd.TransformedDistribution(ft.standard_normal([3]), flow))
            model.compile(keras.optimizers.SGD(0.0))
        model.fit(rows, batch_size=16, shuffle=False, verbose=0)
        scales.append(norm.learned.log_scale.numpy())
    assert scales[0][1] == scales[1][1] == 0
    np.testing.assert_allclose(*scales, rtol=0, atol=1e-3)


def a_nan_on_one_replica(two):
    images = ft.grey_levels(24).astype(np.float32) + 0.5
    # On the second replica, which has the second half of a batch.
    images[14, 0, 0, 0] = np.nan
    for make in (lambda: None, lambda: keras.optimizers.Adam(1e-3)):
        model = st.make_model(two, make, dequantize=False, network_fn=ft.convolution)
        # So that there are moments, which a step of zeros would change.
        model.fit(images[:8], batch_size=8, shuffle=False, verbose=0)
        expected = _state(model)
        with pytest.raises(tfr.NonFiniteLossError, match="at step 1, first in the data"):
            model.fit(ft.dataset(images[8:], 8), verbose=0)
        ft.assert_equal(_state(model), expected)


def statistics_of_each_replica(two):
    images = ft.grey_levels(16)
    model = _fit(two, images, global_statistics=False)
    for variable in model.distribution.variables:
        first, second = two.experimental_local_results(variable)
        np.testing.assert_array_equal(first, second, err_msg=variable.name)
    whole = _fit(_ONE, images)
    pairs = zip(model.distribution.variables, whole.distribution.variables, strict=True)
    differences = [np.abs(a.numpy() - b.numpy()).max() for a, b in pairs if "moving" in b.name]
    assert 1e-3 < max(differences) < 1, differences


def scopes_that_differ(two):
    distribution = st.make_model().distribution
    with pytest.raises(ValueError, match="the distribution from the scope"), two.scope():
        tfr.FlowModel(distribution)
    model, optimizer = st.make_model(two), keras.optimizers.Adam()
    with pytest.raises(ValueError, match="the optimizer from the scope"):
        model.compile(optimizer)


if __name__ == "__main__":
    # TensorFlow's optimizations of graphs take longer than they save in so few steps.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    for check in (
        training_and_evaluation,
        optimizers,
        conditions_and_recomputed_activations,
        weights_of_events,
        hooks_of_a_subclass,
        first_batch_of_act_norm,
        columns_that_are_constant_or_far_from_zero,
        a_nan_on_one_replica,
        statistics_of_each_replica,
        scopes_that_differ,
    ):
        start = time.monotonic()
        check(strategy)
        print(f"{check.__name__}: {time.monotonic() - start:.1f} s", flush=True)
