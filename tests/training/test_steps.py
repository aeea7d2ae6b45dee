"""A step without a Keras model, and the loss of a step computed a second time."""

import flow_testing as ft
import keras
import numpy as np
import pytest
import strategy_testing as st
import tensorflow as tf

import tfp_realnvp as tfr
from tfp_realnvp.distributions.data_spec import DataSpec
from tfp_realnvp.training.model_parts import ModelParts
from tfp_realnvp.training.steps import CompileOptions, EvaluationStep, TrainingStep

_WEIGHTS = np.linspace(0, 1, 8, dtype=np.float32)


def _images():
    return ft.conditional_distribution("labels", "user", condition_dropout=0.3)


def _vectors():
    return ft.vector_distribution(2, num_filters=4, weights_seed=1)


def _data(make):
    labels = np.arange(8) % 5
    return (ft.grey_levels(8), labels) if make is _images else (ft.normal([8, 2]).numpy(), None)


@pytest.mark.graph
@pytest.mark.parametrize("make", [_images, _vectors])
@pytest.mark.parametrize("weights", [None, _WEIGHTS], ids=["plain", "weighted"])
def test_steps_without_a_model_are_those_of_fit(make, weights):
    x, y = _data(make)
    keras.utils.set_random_seed(0)
    model = tfr.FlowModel(make(), seed=3)
    model.compile(keras.optimizers.SGD(1e-3))
    fit = model.fit(x, y, sample_weight=weights, batch_size=4, shuffle=False, verbose=0)

    keras.utils.set_random_seed(0)
    spec = DataSpec(make(), None, None, 3)
    spec.build_networks()
    options = CompileOptions(scale_l2=5e-5)
    step = TrainingStep(spec, ModelParts(spec), keras.optimizers.SGD(1e-3), options)
    step.optimizer.build(step.parts.trainable_variables)
    means = []
    for part in (slice(4), slice(4, 8)):
        batch = (
            x[part],
            None if y is None else y[part],
            weights if weights is None else weights[part],
        )
        result = step(batch)
        means.append((float(result.mean), float(result.total)))
        step.guard.raise_failure()
    ft.assert_close(
        ft.values(step.parts.trainable_variables),
        ft.values(model.trainable_variables),
        rtol=1e-4,
        atol=1e-6,
    )
    values, totals = zip(*means, strict=True)
    assert fit.history["loss"][0] == pytest.approx(-np.average(values, weights=totals), rel=1e-5)

    evaluation = EvaluationStep(spec, spec.distribution)
    log_prob = model.predict(x if y is None else (x, y), verbose=0)
    ft.assert_close(evaluation.predict((x, y)).numpy(), log_prob, rtol=1e-4, atol=1e-4)
    mean = float(evaluation((x, y, weights)).mean)
    assert mean == pytest.approx(np.average(log_prob, weights=weights), rel=1e-4)


def test_a_step_skips_a_batch_that_is_not_finite():
    spec = DataSpec(_vectors(), None, None, 0)
    step = TrainingStep(spec, ModelParts(spec), keras.optimizers.SGD(0.1))
    step.optimizer.build(step.parts.trainable_variables)
    step(ft.normal([8, 2]))
    before = ft.values(step.parts.trainable_variables)
    step(np.full([8, 2], 1e30, np.float32))
    ft.assert_close(ft.values(step.parts.trainable_variables), before, rtol=0, atol=0)
    with pytest.raises(tfr.NonFiniteLossError, match="at step 1"):
        step.guard.raise_failure()


def test_the_draw_of_a_step_gives_its_loss_again():
    keras.utils.set_random_seed(0)
    model = tfr.FlowModel(_images(), seed=3)
    model.compile(keras.optimizers.SGD(1e-3), scale_l2=0.0, first_step=5)
    x, y = _data(_images)
    model.train_on_batch(x, y)  # initializes normalizations
    batch = model.unpack_batch((x, y))

    def loss(draw=None):
        return -float(tf.reduce_mean(model.training_log_prob(batch, draw)))

    for k in range(1, 4):
        before = model.get_weights()
        model.reset_metrics()
        expected = pytest.approx(float(model.train_on_batch(x, y)[0]), rel=1e-5)
        after = model.get_weights()
        model.set_weights(before)
        assert loss(draw=5 + k) == expected
        model.set_weights(before)
        assert loss() != expected  # the noise of the next step
        model.set_weights(after)


class _Scheduled(st.OwnStep):
    def train_step(self, data):
        batch = self.unpack_batch(data)
        with self.scheduled_rate(batch) as is_made:
            logs = super().train_step(data)
        return {**logs, "is_made": is_made}


@pytest.mark.graph
@pytest.mark.parametrize("kind", [_Scheduled, st.OwnStep])
def test_an_own_step_has_the_rates_of_a_schedule(kind):
    rows = np.resize(ft.normal([16, 2]), [192, 2])
    results = []
    for each in (tfr.FlowModel, kind):
        keras.utils.set_random_seed(0)
        model = each(_vectors())
        model.compile(keras.optimizers.SGD(0.01), anneal=True, steps_per_execution=2)
        model.fit(rows, batch_size=64, epochs=2, shuffle=False, verbose=0)
        assert float(model.optimizer.learning_rate.numpy()) == np.float32(0.01)
        results.append(ft.values(model.trainable_variables))
    distance = max(np.abs(a - b).max() for a, b in zip(*results, strict=True))
    # Without `scheduled_rate`, each step of an execution has the first one's rate.
    assert distance < 1e-5 if kind is _Scheduled else distance > 1e-4
