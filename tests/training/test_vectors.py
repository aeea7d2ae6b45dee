"""`FlowModel` of vectors: training, conditions, saving and export."""

import flow_testing as ft
import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr

pytestmark = pytest.mark.quick


_DATA = np.random.default_rng(0).normal(3.0, 2.0, [64, 3]).astype(np.float32)


@pytest.mark.parametrize("recompute", [False, True])
def test_losses_of_networks_belong_to_the_objective(recompute):
    regularizers = {"kernel_regularizer": "l2", "activity_regularizer": "l2"}
    network = keras.layers.Dense(4, **regularizers)
    coupling = tfr.AffineCoupling(tfr.ChannelMask(num_first=1), network, event_ndims=1)
    flow = tfr.FlowChain([coupling], recompute=recompute)
    model = tfr.FlowModel(tfd.TransformedDistribution(ft.standard_normal([3]), flow))
    model.compile(keras.optimizers.SGD(0.1), scale_l2=0.0)
    before = network.kernel.numpy()
    with tf.GradientTape() as tape:
        log_prob = model.distribution.log_prob(_DATA)
        kernel_loss = 0.01 * tf.reduce_sum(network.kernel**2)
        activity_loss = 0.01 * tf.reduce_sum(network(_DATA[:, :1]) ** 2) / 64
        objective = -tf.reduce_mean(log_prob) + kernel_loss + activity_loss
    gradient = tape.gradient(objective, network.kernel.value)
    loss = model.fit(_DATA, batch_size=64, verbose=0).history["loss"]
    np.testing.assert_allclose(network.kernel, before - 0.1 * gradient, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(loss, [-np.mean(log_prob)], rtol=1e-5)


def _loss(rows, batch_size):
    keras.utils.set_random_seed(0)
    flow = tfr.RealNVPVector(rows.shape[1], num_couplings=4, seed=0)
    model = ft.compiled(tfd.TransformedDistribution(ft.standard_normal(rows.shape[1:]), flow))
    return model.fit(rows, batch_size=batch_size, shuffle=False, verbose=0).history["loss"][0]


def test_one_row_per_batch():
    rows = np.random.default_rng(0).normal(size=[256, 3])
    assert abs(_loss(rows, 1) - _loss(rows, 32)) < 1.0


def test_a_column_that_is_constant_in_the_first_batch():
    rows = np.random.default_rng(0).normal(size=[512, 4])
    plain = _loss(rows, 32)
    rows[:, 1] = np.arange(512) % 50 == 49
    assert _loss(rows, 32) < plain + 1.0


@pytest.mark.parametrize("name", ["SGD", "Muon", *ft.full("Adam", "FusedAdam")])
def test_accumulated_batches_are_one_of_the_whole(name):
    kind = getattr(tfr, name, None) or getattr(keras.optimizers, name)

    def trained(**options):
        keras.utils.set_random_seed(0)
        model = tfr.FlowModel(ft.vector_distribution(3, num_couplings=1, normalization=None))
        model.compile(kind(0.01, global_clipnorm=100.0, **options))
        size = 64 // options.get("gradient_accumulation_steps", 1)
        model.fit(_DATA, batch_size=size, epochs=2, shuffle=False, verbose=0)
        assert int(model.optimizer.iterations) == 2
        return [v.numpy() for v in model.trainable_variables]

    ft.assert_close(trained(gradient_accumulation_steps=4), trained(), rtol=1e-5, atol=1e-5)


def _seconds(dtype):
    """Returns times of one minute, in seconds since 1970, and their distribution."""
    rows = 1.7e9 + np.random.default_rng(0).normal(0.0, 20.0, [64, 2])
    base = tfd.Independent(tfd.Normal(tf.Variable(tf.zeros([2], dtype)), tf.ones([], dtype)), 1)
    standardization = tfr.Standardization([1.7e9, 1.7e9], [20.0, 25.0], dtype=dtype)
    return rows, tfd.TransformedDistribution(base, standardization)


def test_data_have_the_dtype_of_the_distribution():
    rows, distribution = _seconds(tf.float64)
    model = ft.compiled(distribution, keras.optimizers.SGD(0.0))
    expected = distribution.log_prob(rows)
    frame = pd.DataFrame(rows)
    batches = [rows[:40], rows[40:]]
    for log_prob in (
        *(model(values) for values in (rows, tf.constant(rows))),
        *(model.predict(values, verbose=0) for values in (rows, tf.constant(rows), frame)),
        model.predict(((batch,) for batch in batches), verbose=0),
        model.predict_on_batch(rows),
        tfr.log_prob(model, rows),
    ):
        np.testing.assert_allclose(log_prob, expected, rtol=1e-12)
    history = model.fit(rows, batch_size=64, validation_split=0.25, verbose=0).history
    np.testing.assert_allclose(history["loss"], -np.mean(expected[:48]), rtol=1e-6)
    np.testing.assert_allclose(history["val_loss"], -np.mean(expected[48:]), rtol=1e-6)


def test_columns_that_float32_cannot_tell_apart():
    rows, distribution = _seconds(tf.float32)
    model = ft.compiled(distribution)
    rows[:, 0] = 1.7e9  # constant
    match = r"and values up to 1\.7e\+09 in column 1; .*`dtype=tf\.float64`"
    for values in (rows, tf.constant(rows), pd.DataFrame(rows)):
        with pytest.raises(ValueError, match=rf"FlowModel\.fit: .*{match}"):
            model.fit(values)
    with pytest.raises(ValueError, match=rf"Standardization\.of: .*{match}"):
        tfr.Standardization.of(rows)
    assert tfr.Standardization.of(rows, dtype=tf.float64).dtype == tf.float64
    # A flow of weeks may predict at times of one minute.
    model.fit(1.7e9 + 1e3 * (rows - 1.7e9), verbose=0)
    assert model.predict(rows, verbose=0).shape == (64,)
