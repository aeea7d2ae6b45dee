"""The learning rate of each step, as the weights show it."""

import time
import types

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr
from tfp_realnvp.training import learning_rate

tfd = tfp.distributions

pytestmark = pytest.mark.eager

_ROWS = 100 + ft.normal([8, 1]).numpy()
_RATE = 1e-3  # the default of vectors


def _model(shape=(1,), **options):
    """Returns a model whose location SGD and Adam move by the learning rate in each step.

    All values are greater than the location, so that the derivative of each log density is one.
    """
    model = tfr.FlowModel(tfd.Sample(tfd.Laplace(tf.Variable(0.0), 1.0), shape))
    model.compile(**options)
    return model


def _location(model):
    return float(np.squeeze(model.trainable_variables[0].numpy()))


class _Moves(keras.callbacks.Callback):
    """Notes how far each execution moves the location."""

    def __init__(self):
        super().__init__()
        self.rates = []

    def on_train_batch_begin(self, batch, logs=None):
        self._before = _location(self.model)

    def on_train_batch_end(self, batch, logs=None):
        self.rates.append(_location(self.model) - self._before)


def _rates(model, *callbacks, rows=_ROWS, **options):
    """Returns the learning rates of the steps of `fit`."""
    moves = _Moves()
    model.fit(rows, **{"batch_size": 2, "verbose": 0, **options}, callbacks=[*callbacks, moves])
    return moves.rates


def _cosine(steps, first=0, rate=_RATE):
    return rate * (1 + np.cos(np.pi * np.arange(first, steps) / steps)) / 2


def _assert_rates(actual, expected):
    # The location moves by rounded steps, and Keras rounds 1 - β₂ᵗ to float32.
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-7)


def _budget(steps=8, peak=2e-3):
    return tfr.LearningRateBudget(peak, steps=steps, warmup_steps=2)


def _of_budget(steps=8, peak=2e-3):
    numbers = np.arange(steps)
    return peak * np.minimum(1, (numbers + 1) / 2) * np.minimum(1, 2 * (1 - numbers / steps))


def _rate(model):
    return float(model.optimizer.learning_rate.numpy())


@pytest.mark.graph
def test_the_default_falls_to_zero_in_each_fit():
    model = _model()
    for epochs in (2, 1):
        _assert_rates(_rates(model, epochs=epochs), _cosine(4 * epochs))
        assert _rate(model) == np.float32(_RATE)
    images = np.full([64, 2, 2, 1], 200, np.uint8)
    rates = _rates(_model((2, 2, 1)), rows=images, batch_size=64, epochs=2)
    _assert_rates(rates, 4 * _cosine(2))


@pytest.mark.graph
@pytest.mark.parametrize("rate", [None, 3e-3])
def test_a_fit_after_a_budget_has_the_rates_of_a_new_model(rate):
    model = _model(optimizer=rate and keras.optimizers.Adam(rate))
    expected = [rate] * 4 if rate else _cosine(4)
    before = _rate(model)
    _assert_rates(_rates(model, _budget(), epochs=9), _of_budget())
    assert _rate(model) == before
    _assert_rates(_rates(model), expected)


@pytest.mark.parametrize("when", ["on_train_batch_begin", "on_train_batch_end"])
@pytest.mark.parametrize("has_budget", [False, True])
def test_a_fit_after_an_interrupted_one(has_budget, when):
    model = _model()
    # Before and after our callbacks.
    callbacks = [ft.Interrupt(when, 2), *([_budget()] if has_budget else [])]
    with pytest.raises(KeyboardInterrupt):
        _rates(model, *callbacks)
    assert _rate(model) == np.float32(_RATE)
    location = _location(model)
    model.train_on_batch(_ROWS)
    _assert_rates(_location(model) - location, _RATE)
    _assert_rates(_rates(model), _cosine(4))


@pytest.mark.parametrize("has_budget", [False, True])
@pytest.mark.parametrize("when", ["on_train_batch_begin", "on_train_batch_end", "on_epoch_end"])
def test_a_model_that_a_callback_saves_has_the_rate_of_compile(when, has_budget, tmp_path):
    def save(*_, **__):
        model.save(tmp_path / "model.keras")

    model = _model()
    budget = [_budget()] if has_budget else []
    saving = keras.callbacks.LambdaCallback(**{when: save})
    model.fit(_ROWS, batch_size=2, verbose=0, callbacks=[*budget, saving])
    assert _rate(keras.models.load_model(tmp_path / "model.keras")) == np.float32(_RATE)


def _generator(rows, size):
    signature = tf.TensorSpec([None, 1])
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    return tf.data.Dataset.from_generator(lambda: parts, output_signature=signature)


@pytest.mark.parametrize(
    ("num_rows", "size", "factors"),
    [
        *[(8, 2, [1] * 4), (128, 64, [2**0.5] * 2), (1024, 512, [4, 4]), (2048, 1024, [4, 4])],
        # A batch has no more rows than the data, and the last one has less.
        *[(72, 2048, [1.5]), (192, 128, [2, 2**0.5])],
    ],
)
@pytest.mark.parametrize("kind", ["array", "dataset", "generator"])
def test_the_default_of_vectors_grows_with_the_rows_of_a_batch(num_rows, size, factors, kind):
    rows = np.resize(_ROWS, [num_rows, 1])
    options = {"batch_size": size}
    if kind != "array":
        rows, options = (ft.dataset if kind == "dataset" else _generator)(rows, size), {}
        options["batch_size"] = None
    # The first epoch of a generator has an unknown number of steps.
    if kind == "generator":
        rows = rows.apply(tf.data.experimental.assert_cardinality(len(factors)))
    expected = np.array(factors) * _cosine(len(factors))
    _assert_rates(_rates(_model(), rows=rows, **options), expected)
    # The peak of a budget, and the rate of an optimizer, are those of the caller.
    _assert_rates(_rates(_model(), _budget(), rows=rows, **options), _of_budget()[: len(factors)])
    constant = _model(optimizer=tfr.FusedAdam(_RATE))
    _assert_rates(_rates(constant, rows=rows, **options), [_RATE] * len(factors))


@pytest.mark.graph
@pytest.mark.parametrize("has_budget", [False, True])
def test_a_rate_that_is_reduced_on_a_plateau(has_budget):
    logs = keras.callbacks.LambdaCallback(on_epoch_end=lambda _, logs: logs.update(plateau=1.0))
    plateau = keras.callbacks.ReduceLROnPlateau("plateau", 0.5, patience=1, mode="min")
    rows = np.resize(_ROWS, [256, 1])
    callbacks = [logs, plateau] + [_budget()] * has_budget
    model = _model()
    rates = _rates(model, *callbacks, rows=rows, batch_size=128, epochs=4)
    expected = _of_budget() if has_budget else 2 * _cosine(8)
    _assert_rates(rates, expected * np.repeat([1, 1, 0.5, 0.25], 2))
    # As in Keras, what a callback sets stays.
    assert _rate(model) == pytest.approx(_RATE / 8)


@pytest.mark.graph
@pytest.mark.parametrize("run_eagerly", [False, True])
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "muon"])
def test_a_failed_fit_leaves_the_rate(name, run_eagerly):
    # An assertion ends the step before its end.
    bijector = tfr.FlowChain([tfp.bijectors.Scale(2.0)], event_ndims=1, validate_args=True)
    base = tfd.Sample(tfd.Laplace(tf.Variable(0.0), 1.0), (1,))
    model = tfr.FlowModel(tfd.TransformedDistribution(base, bijector))
    optimizer = tfr.Muon(_RATE) if name == "muon" else keras.optimizers.get(name)
    model.compile(optimizer, run_eagerly=run_eagerly)
    expected, rows = _rate(model), np.float32([1.0, 2.0, np.nan, 1.0])[:, np.newaxis]
    with pytest.raises(tf.errors.InvalidArgumentError):
        model.fit(ft.dataset(rows, 1), verbose=0, callbacks=[_budget(steps=4)])
    assert _rate(model) == expected


def test_a_rate_that_the_user_sets_is_the_peak():
    model = _model()
    model.optimizer.learning_rate = 0.5
    _assert_rates(_rates(model), _cosine(4, rate=0.5))
    assert _rate(model) == 0.5


def test_a_schedule_of_the_user_takes_the_place_of_the_default():
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch: 0.01 * (epoch + 1))
    _assert_rates(_rates(_model(), scheduler, epochs=2), np.repeat([0.01, 0.02], 4))
    model = _model()
    model.optimizer.learning_rate = keras.optimizers.schedules.ExponentialDecay(0.01, 1, 0.5)
    _assert_rates(_rates(model), 0.01 * 0.5 ** np.arange(4))


def test_a_saved_model_keeps_the_rate_that_somebody_set(tmp_path):
    for rate in (0.25, keras.optimizers.schedules.ExponentialDecay(0.01, 1, 0.5)):
        model = _model()
        model.optimizer.learning_rate = rate
        loaded = ft.reloaded("load_model", model, tmp_path)
        assert float(loaded.optimizer.learning_rate) == float(model.optimizer.learning_rate)


@pytest.mark.graph
def test_steps_of_one_execution_have_their_own_rates():
    for callbacks, rates in (([], _cosine(4)), ([_budget(steps=6)], _of_budget(steps=6)[:4])):
        model = _model(steps_per_execution=3)
        # Executions of three steps and of one.
        actual = _rates(model, *callbacks)
        _assert_rates(actual, [sum(rates[:3]), rates[3]])
        assert model.optimizer.iterations == 4
    # The budget ends within an execution.
    _assert_rates(_rates(model, _budget(steps=2)), [sum(_of_budget(steps=2))])


def test_a_resumed_fit_continues_the_default(tmp_path):
    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    model = _model()
    _rates(model)
    _assert_rates(_rates(model, initial_epoch=1, epochs=3), _cosine(12, first=4))
    with pytest.raises(KeyboardInterrupt):
        _rates(_model(), backup(), ft.Interrupt("on_epoch_begin", 4), epochs=2)
    _assert_rates(_rates(_model(), backup(), epochs=2), _cosine(8, first=4))


def test_the_default_for_an_unknown_number_of_steps():
    rates = _rates(_model(), rows=_generator(_ROWS[:4], 2), epochs=3, batch_size=None)
    # Keras finds out that there is no third batch.
    _assert_rates(rates, np.repeat(_cosine(3), 2))


# Budgets.


def test_the_clock_runs_within_fit_only():
    model = _model()
    budget = tfr.LearningRateBudget(seconds=1000.0)
    used = []
    for _ in range(2):
        model.fit(_ROWS, batch_size=2, verbose=0, callbacks=[budget])
        used.append(budget.elapsed_seconds)
        time.sleep(0.05)
        assert budget.elapsed_seconds == used[-1]
    assert 0 < used[0] < used[1]
    np.testing.assert_allclose(budget.fraction, used[1] / 1000)

    stop = ft.Interrupt("on_train_batch_end")
    with pytest.raises(KeyboardInterrupt):
        model.fit(_ROWS, batch_size=2, verbose=0, callbacks=[budget, stop])
    assert used[1] < budget.used_seconds == budget.elapsed_seconds


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [
        # The first step takes 100 seconds, the others 6.
        ({"steps": 12}, [0.8, 0.4, 0.0]),
        ({"seconds": 240}, [2.03, 1.63, 1.23]),
        # Half of the budget was used up before.
        ({"seconds": 240, "used_seconds": 120}, [0.03, 0.0]),
    ],
)
def test_the_logs_have_the_time_left(limit, minutes, clock):
    def tick(batch, logs):
        clock[0] += 6 if clock[0] else 100

    budget = tfr.LearningRateBudget(**limit)
    options = {"batch_size": 2, "epochs": 3, "verbose": 0}
    callbacks = [keras.callbacks.LambdaCallback(on_train_batch_begin=tick), budget]
    history = _model().fit(_ROWS, **options, callbacks=callbacks).history
    assert history["minutes_left"] == pytest.approx(minutes, abs=5e-3)
    # A second `fit` goes on, and does not count the time between the two.
    clock[0] += 1e6
    assert budget.remaining_seconds <= 60 * minutes[-1] + 0.5


def test_a_validation_that_uses_up_the_budget_is_the_last(clock):
    class Clock(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            clock[0] += 100

    model, budget = _model(), tfr.LearningRateBudget(seconds=60)
    options = {"batch_size": 2, "epochs": 3, "validation_data": _ROWS[:2], "verbose": 0}
    history = model.fit(_ROWS, **options, callbacks=[Clock(), budget]).history
    # There is no second epoch: its first step would have a learning rate of zero.
    assert history["minutes_left"] == [0] and int(model.optimizer.iterations) == 4


@pytest.mark.graph
def test_warm_up_and_cosine_of_a_fraction():
    budget = tfr.LearningRateBudget(2.0, steps=8, warmup=0.25, hold=0.25, cosine=True)
    angles = np.pi * np.arange(6) / 6
    _assert_rates(_rates(_model(), budget, epochs=9), [0.0, 1.0, *(1 + np.cos(angles))])


@pytest.fixture
def clock(monkeypatch):
    """Returns a list with the time that a budget sees."""
    now = [0.0]
    monkeypatch.setattr(learning_rate, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    return now


def _rates_without_training(budget, num_steps):
    """Returns the rates of the first steps of a budget, without training."""
    model = _line()
    budget.set_model(model)
    budget.on_train_begin()
    rates = []
    for step in range(num_steps):
        model.optimizer.iterations.assign(step)
        budget.on_train_batch_begin(step)
        rates.append(float(model.optimizer.learning_rate))
        model.optimizer.iterations.assign(step + 1)
        budget.on_train_batch_end(step)
    return np.array(rates)


def test_a_budget_counts_the_steps_of_its_own_fit(tmp_path):
    model = _model(optimizer="sgd")
    rates = _rates(model, tfr.LearningRateBudget(steps=6), epochs=9)
    assert len(rates) == 6 and min(rates) > 1e-4
    for later in (model, ft.reloaded("load_model", model, tmp_path)):
        _assert_rates(_rates(later, tfr.LearningRateBudget(steps=6), epochs=9), rates)
        assert int(later.optimizer.iterations) == 12


@pytest.mark.parametrize("way", ["checkpoint", "backup"])
def test_a_resumed_run_continues_its_budget(tmp_path, way):
    expected = _rates(_model(optimizer="sgd"), tfr.LearningRateBudget(steps=6), epochs=9)

    def run(*callbacks):
        model, budget = _model(optimizer="sgd"), tfr.LearningRateBudget(steps=6)
        # Steps before the run do not count.
        model.optimizer.iterations.assign(100)
        if way == "backup":
            keeper = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        else:
            keeper = tfr.TrainingCheckpoint(tmp_path, model, budget=budget)
            keeper.restore()
        rates = _rates(model, keeper, budget, *callbacks, epochs=9)
        assert model.optimizer.iterations == 106
        return rates

    with pytest.raises(KeyboardInterrupt):
        run(ft.Interrupt("on_epoch_begin", 104))
    _assert_rates(run(), expected[4:])
    if way == "checkpoint":
        with pytest.warns(UserWarning, match="the budget of 6 steps is used up, .*a new Learning"):
            assert not run()


@pytest.mark.parametrize(
    ("steps", "hold", "warmup"), [(336, 0.5, 100), (50, 0.5, 15), (50, 0.1, 5)]
)
def test_the_default_warm_up(steps, hold, warmup):
    rates = _rates_without_training(tfr.LearningRateBudget(1e-3, steps=steps, hold=hold), steps)
    numbers = np.arange(steps)
    annealed = np.minimum(1, (1 - numbers / steps) / (1 - hold))
    expected = 1e-3 * np.minimum(1, (numbers + 1) / warmup) * annealed
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    assert rates.max() == pytest.approx(1e-3, rel=2e-2) and rates[-1] < 1e-4


@pytest.mark.parametrize("options", [{"warmup_steps": 51}, {"warmup_steps": 5, "warmup": 0.1}])
def test_a_warm_up_that_a_budget_cannot_have(options):
    with pytest.raises(ValueError, match="from 1 to steps, and only without warmup"):
        tfr.LearningRateBudget(1e-3, steps=50, **options)


@pytest.mark.parametrize(("seconds", "num_steps"), [(70, 50), (10_000, 5_000)])
def test_a_budget_of_seconds_reaches_its_peak(seconds, num_steps, clock, monkeypatch):
    # The first step takes 20 seconds, the others one.
    budget = tfr.LearningRateBudget(1e-3, seconds=seconds)
    on_train_batch_end = budget.on_train_batch_end

    def end(batch, logs=None):
        clock[0] += 1 if clock[0] else 20
        on_train_batch_end(batch, logs)

    monkeypatch.setattr(budget, "on_train_batch_end", end)
    rates = _rates_without_training(budget, min(num_steps, 200))
    if seconds == 70:
        # A share of 0.3 of the 50 seconds after the first step, up to 35 seconds of the budget.
        np.testing.assert_allclose(rates[1:16], 1e-3 * np.maximum(np.arange(15) / 15, 0.02), 1e-5)
        assert rates.max() == pytest.approx(1e-3, rel=1e-5)
    else:
        np.testing.assert_allclose(rates, 1e-3 * np.minimum(1, np.arange(1, 201) / 100), 1e-5)


# Budgets with other Keras models.


def _line():
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.Adam(3e-3), loss=lambda y, prediction: -prediction)
    return model


_ONES = np.ones([8, 1], np.float32)


@pytest.mark.graph
def test_a_budget_of_any_keras_model():
    model, moves = _line(), _Moves()
    options = {"batch_size": 2, "epochs": 9, "verbose": 0}
    history = model.fit(_ONES, _ONES, **options, callbacks=[_budget(), moves])
    _assert_rates(moves.rates, _of_budget())
    assert len(history.epoch) == 2 and _rate(model) == np.float32(3e-3)


def test_an_interrupted_budget_of_any_keras_model():
    for when in ("on_train_batch_begin", "on_train_batch_end"):
        model, budget = _line(), _budget()
        with pytest.raises(KeyboardInterrupt):
            model.fit(
                _ONES, _ONES, batch_size=2, verbose=0, callbacks=[budget, ft.Interrupt(when, 2)]
            )
        # Keras does not call a callback after an error; its next `fit` does.
        model.fit(_ONES, _ONES, batch_size=2, verbose=0, callbacks=[budget])
        assert _rate(model) == np.float32(3e-3)


@pytest.mark.parametrize("make", [_model, lambda **_: _line()], ids=["flow", "keras"])
def test_a_budget_needs_a_rate_that_it_can_change(make):
    model = make(optimizer=tfr.FusedAdam(1e-3))
    inputs = (_ROWS,) if isinstance(model, tfr.FlowModel) else (_ONES, _ONES)
    schedule = keras.optimizers.schedules.ExponentialDecay(0.01, 1, 0.5)
    for rate, got in ((0.0, "got 0.0"), (schedule, "got .*ExponentialDecay")):
        model.optimizer.learning_rate = rate
        before = _location(model)
        with pytest.raises((TypeError, ValueError), match=f"an optimizer with a positive .*{got}"):
            model.fit(*inputs, verbose=0, callbacks=[_budget()])
        assert _location(model) == before
