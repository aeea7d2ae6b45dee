"""Keras' hooks of a subclass: `compute_loss`, `compute_metrics`, `train_step`."""

import flow_testing as ft
import keras
import numpy as np
import pytest
import strategy_testing as st
import tensorflow as tf
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr

_ROWS = ft.normal([12, 2]).numpy()
_WEIGHTS = np.linspace(0, 1, 12)


class PlusConstant(tfr.FlowModel):
    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs) + 1000.0


class Spread(tfr.FlowModel):
    """Adds a term of the latents, and two metrics."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.largest = keras.metrics.Mean(name="largest")

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        latents = self.distribution.bijector.inverse(x)
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        return loss + 0.1 * tf.reduce_mean(latents**4)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        self.largest.update_state(tf.reduce_max(y_pred))
        return {**super().compute_metrics(x, y, y_pred, sample_weight), "number": tf.size(y_pred)}


class LongerStep(tfr.FlowModel):
    def train_step(self, data):
        return super().train_step(data)


def make(kind, optimizer=None, **options):
    keras.utils.set_random_seed(0)
    model = kind(ft.vector_distribution(2, num_filters=4, weights_seed=1))
    model.compile(optimizer or keras.optimizers.SGD(0.01), **options)
    return model


def fitted(model, data=_ROWS, **options):
    """Returns the logs of one epoch and the weights after it."""
    options = {"batch_size": 4, "shuffle": False, "verbose": 0, **options}
    history = model.fit(data, **options).history
    return history, ft.values(model.trainable_variables)


@pytest.mark.parametrize(
    "options", [{}, {"run_eagerly": True}, {"steps_per_execution": 3}], ids=str
)
def test_a_constant_is_in_the_loss_and_changes_no_weights(options):
    (plain, expected), (logs, actual) = (
        fitted(make(kind, **options)) for kind in (tfr.FlowModel, PlusConstant)
    )
    ft.assert_close(actual, expected, rtol=1e-5, atol=1e-7)
    model = make(PlusConstant, **options)
    penalty = float(model.penalty())
    assert logs["loss"][0] == pytest.approx(plain["loss"][0] + 1000 + penalty, rel=1e-4)
    log_prob = model.predict(_ROWS, verbose=0)
    loss = model.evaluate(_ROWS, verbose=0)
    assert loss == pytest.approx(1000 + penalty - log_prob.mean(), rel=1e-5)


@pytest.mark.parametrize("weights", [None, _WEIGHTS], ids=["plain", "weighted"])
def test_a_term_and_metrics(weights):
    model = make(Spread)
    logs, actual = fitted(model, sample_weight=weights)
    _, plain = fitted(make(tfr.FlowModel), sample_weight=weights)
    assert max(np.abs(a - b).max() for a, b in zip(actual, plain, strict=True)) > 1e-4
    assert logs["number"] == [4] and len(logs["largest"]) == 1
    results = model.evaluate(_ROWS, return_dict=True, verbose=0)
    assert results["largest"] == pytest.approx(model.predict(_ROWS, verbose=0).max())
    # Metrics begin anew in each epoch, and a second `compile` adds none.
    model.compile("sgd")
    assert [metric.name for metric in model.metrics] == ["loss", "largest"]


@pytest.mark.parametrize("kind", [st.OwnStep, LongerStep])
@pytest.mark.parametrize(
    ("schedule", "weights"),
    [(None, None), (None, _WEIGHTS), ("default", _WEIGHTS), ("budget", None)],
    ids=["plain", "weighted", "default", "budget"],
)
def test_a_step_of_the_users_own(schedule, weights, kind):
    results = []
    for each in (tfr.FlowModel, kind):
        model = make(each)
        if schedule == "default":
            model.compile()
        callbacks = [tfr.LearningRateBudget(0.02, steps=4)] if schedule == "budget" else []
        results.append(fitted(model, sample_weight=weights, callbacks=callbacks)[1])
    ft.assert_close(*results, rtol=1e-4, atol=1e-6)


def test_images_with_labels_and_noise():
    images, labels = ft.grey_levels(8), np.arange(8) % 5
    states = []
    for kind in (tfr.FlowModel, st.OwnStep):
        keras.utils.set_random_seed(0)
        model = kind(ft.conditional_distribution("labels", "user", condition_dropout=0.3))
        model.compile(keras.optimizers.SGD(1e-3))
        states.append(fitted(model, images, y=labels)[1])
    ft.assert_close(*states, rtol=1e-4, atol=1e-6)


def test_saved_and_loaded(tmp_path):
    keras.saving.register_keras_serializable(package="tests")(Spread)
    model = make(Spread)
    loaded = ft.reloaded("load_model", model, tmp_path)
    assert type(loaded) is Spread
    ft.assert_close(fitted(loaded)[1], fitted(model)[1], rtol=1e-6, atol=1e-7)


def test_what_stays_without_effect_is_refused():
    with pytest.raises(TypeError, match=r"Own: expected no `call`, .* override `compute_loss`"):

        class Own(tfr.FlowModel):
            def call(self, x, training=False):
                return x

    model = make(tfr.FlowModel)
    with pytest.raises(ValueError, match="override `compute_loss` and `compute_metrics`"):
        model.compile("adam", metrics=["mae"])


class Discriminative(tfr.FlowModel):
    """Maximizes log p(x | y) + log p(y | x), without the penalty."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        log_joint = tfr.class_log_joint(self.distribution, x)
        log_posterior = tf.gather(tf.nn.log_softmax(log_joint), y, batch_dims=1)
        return -tf.reduce_mean(y_pred + log_posterior)


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_another_objective(run_eagerly):
    keras.utils.set_random_seed(0)
    model = Discriminative(ft.vector_distribution(2, num_filters=4, num_classes=3, weights_seed=1))
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=run_eagerly)
    rows, labels = tf.constant(_ROWS), tf.constant(np.arange(12) % 3)

    def objective():
        log_joint = tfr.class_log_joint(model.distribution, rows)
        log_posterior = tf.gather(tf.nn.log_softmax(log_joint), labels, batch_dims=1)
        log_prob = tfr.condition(model.distribution, labels).log_prob(rows)
        return -tf.reduce_mean(log_posterior + log_prob)

    with tf.GradientTape() as tape:
        loss = objective()
    before = ft.values(model.trainable_variables)
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    logs, after = fitted(model, _ROWS, y=labels.numpy(), batch_size=12)
    assert logs["loss"] == pytest.approx([float(loss)], rel=1e-5)
    expected = [b - 0.1 * g.numpy() for b, g in zip(before, gradients, strict=True)]
    ft.assert_close(after, expected, rtol=1e-3, atol=1e-6)


def test_log_prob_of_data_warns_under_a_tape():
    model = make(tfr.FlowModel)
    with tf.GradientTape(), pytest.warns(UserWarning, match="`distribution.log_prob.x.` has grad"):
        tfr.log_prob(model, _ROWS)


class _OtherKeys(tfr.FlowModel):
    """Returns logs without the key `loss`."""

    def train_step(self, data):
        logs = super().train_step(data)
        return {"nats": logs["loss"]}

    def test_step(self, data):
        return {"zero": tf.zeros([])}


def test_logs_without_a_loss():
    model = _OtherKeys(ft.vector_distribution(2, num_filters=4, weights_seed=1))
    model.compile()
    rows = ft.normal([8, 2])
    history = model.fit(rows, verbose=0).history
    assert {*history} == {"nats"} and np.isfinite(history["nats"]).all()
    assert model.evaluate(rows, verbose=0, return_dict=True) == {"zero": 0.0}
    with pytest.raises(ValueError, match="got an empty dataset"):
        model.fit(tf.data.Dataset.from_tensors(rows).take(0).repeat(1), verbose=0)


def test_a_compiled_layer_within_a_network():
    encoder = keras.Sequential([keras.layers.Dense(4)])
    encoder.compile("sgd", "mse")
    encoder.fit(np.ones([8, 1]), np.ones([8, 4]), verbose=0)

    @keras.saving.register_keras_serializable("test_hooks")
    class Network(keras.layers.Layer):
        def __init__(self, channels, **kwargs):
            super().__init__(**kwargs)
            self.encoder, self.output_layer = encoder, keras.layers.Dense(channels)

        def call(self, x):
            return self.output_layer(self.encoder(x))

    coupling = tfr.AffineCoupling(tfr.ChannelMask(0), Network(2), event_ndims=1)
    model = ft.compiled(tfd.TransformedDistribution(ft.standard_normal([2]), coupling))
    rows = ft.normal([8, 2])
    expected = -model.predict(rows, verbose=0).mean()
    assert model.evaluate(rows, verbose=0) == pytest.approx(expected, rel=1e-5)
    history = model.fit(rows, validation_data=(rows,), verbose=0).history
    assert history["loss"] == [pytest.approx(expected, rel=1e-5)]
    assert abs(history["val_loss"][0]) > 0.1


def test_a_second_training_has_noise_of_its_own():
    model = ft.compiled(ft.flow_distribution((4, 4, 1)), keras.optimizers.SGD(0.0))
    images = ft.grey_levels(8)
    options = {"shuffle": False, "batch_size": 8, "verbose": 0}
    model.fit(images, **options)  # initializes normalizations
    losses = []
    for _ in range(2):
        model.compile(keras.optimizers.SGD(0.0))
        losses += model.fit(images, epochs=2, **options).history["loss"]
    assert len(np.unique(losses)) == 4
    assert model.compile_options.first_step == 3
    first = model.compile_options.first_step
    model.compile(keras.optimizers.SGD(0.0), first_step=first)
    assert model.compile_options.first_step == first


def test_training_none_in_a_functional_model():
    flow_model = ft.compiled(ft.vector_distribution(2, num_filters=4, weights_seed=1))
    inputs = keras.Input([2])

    class Density(keras.Model):
        def __init__(self):
            super().__init__()
            self.model = flow_model

        def call(self, x, training=None):
            return self.model(x, training=training)

    rows = ft.normal([8, 2])
    np.testing.assert_allclose(Density()(rows), flow_model(rows), rtol=1e-6)
    functional = keras.Model(inputs, keras.layers.Lambda(lambda x: x + 0)(flow_model(inputs)))
    np.testing.assert_allclose(functional(rows), flow_model(rows), rtol=1e-6)
