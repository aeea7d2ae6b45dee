import contextlib
import pathlib
import shutil
import subprocess
import sys
from functools import partial

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr
from tfp_realnvp.internal import atomic_files

pytestmark = pytest.mark.eager

_IMAGES = ft.grey_levels(32, (4, 4, 1))


_SMALL = {"num_scales": 1, "num_couplings": 1, "network_fn": ft.convolution}


def _model():
    return ft.compiled(ft.flow_distribution((4, 4, 1), **_SMALL))


def _fit(checkpoint, values, **options):
    bits = lambda epoch, logs: logs.update(val_bits_per_dim=values[epoch])  # noqa: E731
    logs = keras.callbacks.LambdaCallback(on_epoch_end=bits)
    callbacks = [logs, checkpoint, *options.pop("callbacks", [])]
    options = {"batch_size": 8, "verbose": 0, "callbacks": callbacks, **options}
    return checkpoint.model.fit(_IMAGES, **options)


def test_patience_lasts_over_restarts(tmp_path):
    checkpoint = tfr.TrainingCheckpoint(tmp_path, _model(), patience=3)
    _fit(checkpoint, [4.0, 3.0, 3.5], epochs=3)
    assert not checkpoint.is_out_of_patience
    best = (tmp_path / "best.weights.h5").read_bytes()
    restarted = tfr.TrainingCheckpoint(tmp_path, _model(), patience=3)
    restarted.restore()
    history = _fit(restarted, [3.0, 3.2, 1.0], epochs=3)
    assert len(history.epoch) == 2
    assert restarted.is_out_of_patience
    assert (tmp_path / "best.weights.h5").read_bytes() == best
    again = tfr.TrainingCheckpoint(tmp_path, _model(), patience=3)
    assert again.restore() and again.is_out_of_patience
    with pytest.warns(UserWarning, match="`fit` does not train; .* a larger `patience`"):
        assert not _fit(again, [], epochs=3).epoch


@pytest.mark.graph
@pytest.mark.parametrize(
    ("steps_per_execution", "num_steps", "expected"),
    # Once after the last step of an epoch, or of a budget: with its validation.
    [(1, 100, [*range(1, 9)]), (1, 6, [*range(1, 7)]), (3, 100, [3, 4, 7, 8])],
)
def test_steps_that_are_saved(tmp_path, steps_per_execution, num_steps, expected):
    model, steps = _normal(), []
    model.compile(steps_per_execution=steps_per_execution)
    budget = tfr.LearningRateBudget(steps=num_steps)
    checkpoint = tfr.TrainingCheckpoint(tmp_path, model, budget=budget, save_seconds=1e-9)
    save = checkpoint._manager.save
    checkpoint._manager.save = lambda number: steps.append(number) or save(number)
    options = {"batch_size": 8, "epochs": 2, "verbose": 0, "callbacks": [budget, checkpoint]}
    model.fit(_POINTS, **options)
    assert steps == expected
    latest = tf.train.latest_checkpoint(tmp_path / "checkpoints")
    assert pathlib.Path(latest).name == f"ckpt-{expected[-1]}"


_INTERRUPT = ft.Interrupt("on_train_batch_end", 6)


@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_a_run_that_resumes_within_an_epoch_equals_an_uninterrupted_one(
    tmp_path, steps_per_execution
):
    def run(*callbacks):
        keras.utils.set_random_seed(0)
        model = _model()
        model.compile(steps_per_execution=steps_per_execution)
        checkpoint = tfr.TrainingCheckpoint(tmp_path, model, save_seconds=1e-9)
        checkpoint.restore()
        step = int(model.optimizer.iterations)
        batches = tfr.data.batches(_IMAGES, batch_size=8, step=step)
        options = {"steps_per_epoch": 4, "initial_epoch": step // 4, "epochs": 3, "verbose": 0}
        model.fit(batches, callbacks=[checkpoint, *callbacks], **options)
        return step, int(model.optimizer.iterations), _values(model)

    *_, expected = run()
    shutil.rmtree(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(_INTERRUPT)
    first, last, actual = run()
    assert (first, last) == (6, 12)
    ft.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


def test_the_rest_of_an_epoch_is_trained_as_a_whole(tmp_path):
    # With a schedule of its own: it ends with the rest of the epoch.
    model = _model()
    checkpoint = tfr.TrainingCheckpoint(tmp_path, model, save_seconds=1e-9)
    batches = tfr.data.batches(_IMAGES, batch_size=8)
    with pytest.raises(KeyboardInterrupt):
        model.fit(batches, steps_per_epoch=8, verbose=0, callbacks=[checkpoint, _INTERRUPT])
    assert checkpoint.restore()
    model.fit(batches, steps_per_epoch=2, verbose=0, callbacks=[checkpoint])
    assert model.optimizer.iterations == 8


# Averages of the weights.


def _values(model):
    return ft.values(model.trainable_variables)


def _averaging_model():
    optimizer = tfr.FusedAdam(0.01, global_clipnorm=100.0, use_ema=True, ema_momentum=0.8)
    noise = tfr.VariationalDequantization((4, 4, 1), num_couplings=1, num_filters=2)
    flow = ft.flow_distribution((4, 4, 1), **_SMALL)
    return ft.compiled(flow, optimizer, dequantizer=noise)


class _Record(keras.callbacks.Callback):
    """Records the weights after each step, in each validation and at the end of each epoch."""

    def __init__(self):
        super().__init__()
        self.trained, self.validated, self.at_epoch_end = [], [], []

    def on_train_batch_end(self, batch, logs=None):
        self.trained.append(_values(self.model))

    def on_test_begin(self, logs=None):
        self.validated.append(_values(self.model))

    def on_epoch_end(self, epoch, logs=None):
        self.at_epoch_end.append(_values(self.model))


@pytest.mark.graph
def test_averages_are_validated_and_saved(tmp_path):
    model, record = _averaging_model(), _Record()
    checkpoint = tfr.TrainingCheckpoint(tmp_path, model, save_seconds=1e-9)
    options = {"batch_size": 8, "epochs": 2, "verbose": 0, "validation_data": _IMAGES[:8]}
    history = model.fit(_IMAGES, **options, callbacks=[record, checkpoint])
    averages = []
    for weights in record.trained:
        before = averages[-1] if averages else weights
        averages.append([0.8 * a + 0.2 * w for a, w in zip(before, weights, strict=True)])
    validated = averages[3::4]
    ft.assert_close(record.validated, validated, rtol=1e-5, atol=1e-6)
    moved = [np.abs(w - a).max() for w, a in zip(record.trained[-1], validated[-1], strict=True)]
    assert max(moved) > 5e-3
    # Training goes on with the weights as they were, to the last bit, and ends with averages.
    np.testing.assert_equal(record.at_epoch_end, record.trained[3::4])
    np.testing.assert_equal(_values(model), record.validated[-1])

    bits = history.history["val_bits_per_dim"]
    best = _averaging_model()
    best.build_optimizer()
    best.load_weights(tmp_path / "best.weights.h5")
    np.testing.assert_equal(_values(best), record.validated[int(np.argmin(bits))])
    found = best.evaluate(_IMAGES[:8], batch_size=8, verbose=0, return_dict=True)
    assert found["bits_per_dim"] == pytest.approx(min(bits), abs=1e-5)

    again = tfr.TrainingCheckpoint(tmp_path, _averaging_model())
    assert again.restore()
    np.testing.assert_equal(_values(again.model), record.trained[-1])
    with pytest.raises(RuntimeError, match="stop"), again.model.averaged_weights():
        np.testing.assert_equal(_values(again.model), record.validated[-1])
        raise RuntimeError("stop")
    np.testing.assert_equal(_values(again.model), record.trained[-1])

    # An interrupted validation leaves no averages in the model.
    record = _Record()
    with pytest.raises(KeyboardInterrupt):
        again.model.fit(_IMAGES, **options, callbacks=[record, ft.Interrupt("on_test_batch_end")])
    np.testing.assert_equal(_values(again.model), record.trained[-1])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"save_seconds": 0}, "expected positive save_seconds"),
        ({"patience": 0}, "expected a positive patience"),
        ({"best_weights": "best.h5"}, "expected best_weights .*, got 'best.h5'"),
    ],
)
def test_bad_arguments(arguments, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        tfr.TrainingCheckpoint(tmp_path, _normal(), **arguments)


_POINTS = ft.normal([32, 2]).numpy()


def _normal():
    """Returns the smallest model."""
    return ft.compiled(tfd.Sample(tfd.Normal(tf.Variable(0.3), 1.0), [2]))


# Patience without a value.


def test_patience_needs_a_validation(tmp_path):
    checkpoint = tfr.TrainingCheckpoint(tmp_path, _normal(), patience=2)
    message = r"'val_loss' in the logs .*patience=2, got \['loss'"
    with pytest.raises(ValueError, match=message + r"\]; pass validation_data"):
        checkpoint.model.fit(_POINTS, batch_size=8, epochs=5, verbose=0, callbacks=[checkpoint])
    # What was trained until then is saved.
    assert tfr.TrainingCheckpoint(tmp_path, _normal()).restore()


def test_a_monitor_that_is_given_has_to_be_in_the_logs(tmp_path):
    model = _normal()
    for monitor in ("val_los", "loss"):
        checkpoint = tfr.TrainingCheckpoint(tmp_path, model, monitor=monitor)
        known = monitor == "loss"
        with contextlib.nullcontext() if known else pytest.raises(ValueError, match="'val_los'"):
            model.fit(_POINTS, batch_size=8, verbose=0, callbacks=[checkpoint])
    assert (tmp_path / "best.weights.h5").exists()


def test_patience_counts_epochs_with_a_validation(tmp_path):
    model = _normal()
    model.optimizer.learning_rate = 0.0  # No epoch is better than the first.
    checkpoint = tfr.TrainingCheckpoint(tmp_path, model, patience=2)
    options = {"batch_size": 8, "epochs": 20, "validation_data": _POINTS[:8], "verbose": 0}
    history = model.fit(_POINTS, **options, validation_freq=3, callbacks=[checkpoint])
    # After epochs 3, 6 and 9.
    assert len(history.epoch) == 9 and checkpoint.is_out_of_patience


# One process at a time.

_TRAINING = """
import runpy, sys, time
with runpy.run_path(sys.argv[1])["folder_lock"](sys.argv[2], "TrainingCheckpoint"):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_one_process_at_a_time_trains_in_a_folder(tmp_path):
    model = _normal()
    checkpoint = tfr.TrainingCheckpoint(tmp_path, model)
    fit = partial(model.fit, _POINTS, batch_size=8, verbose=0, callbacks=[checkpoint])
    fit()
    code = [sys.executable, "-c", _TRAINING, atomic_files.__file__, str(tmp_path)]
    with subprocess.Popen(code, stdout=subprocess.PIPE, text=True) as other, ft.unchanged(model):
        assert other.stdout.readline() == "locked\n"
        for attempt in (checkpoint.restore, fit):
            with pytest.raises(BlockingIOError, match=f"is training, got '{tmp_path}'"):
                attempt()
        other.kill()
    # A run that is killed leaves no lock.
    assert checkpoint.restore()
    fit()


def _is_locked(folder):
    """Returns whether another process could not lock the folder."""
    code = _TRAINING.replace("60", "0")
    code = [sys.executable, "-c", code, atomic_files.__file__, str(folder)]
    return subprocess.run(code, capture_output=True, check=False).returncode != 0


def test_a_folder_is_locked_within_fit_only(tmp_path):
    found = []

    def look(batch, logs):
        if batch == 1:
            again = tfr.TrainingCheckpoint(tmp_path, _normal())
            found.extend([again.restore(), _is_locked(tmp_path)])

    model = _normal()
    checkpoint = tfr.TrainingCheckpoint(tmp_path, model, save_seconds=1e-9)
    look = keras.callbacks.LambdaCallback(on_train_batch_end=look)
    callbacks = [checkpoint, look, ft.Interrupt("on_train_batch_end", 3)]
    with pytest.raises(KeyboardInterrupt):
        model.fit(_POINTS, batch_size=8, verbose=0, callbacks=callbacks)
    assert found == [True, True]
    assert not _is_locked(tmp_path)
    # The same process goes on with another model.
    again = tfr.TrainingCheckpoint(tmp_path, _normal())
    assert again.restore()
    again.model.fit(_POINTS, batch_size=8, verbose=0, callbacks=[again])
    assert not _is_locked(tmp_path)


def _vector_model():
    return ft.compiled(ft.vector_distribution(2, num_filters=4, weights_seed=1))


def test_another_model_than_that_of_the_constructor(tmp_path):
    rows, checkpoint = ft.normal([8, 2]), tfr.TrainingCheckpoint(tmp_path, _vector_model())
    with pytest.raises(ValueError, match="expected `fit` of its own model"):
        _vector_model().fit(rows, verbose=0, callbacks=[checkpoint])
    assert not checkpoint.restore()


def test_a_new_optimizer_is_followed(tmp_path):
    rows, model = ft.normal([8, 2]), _vector_model()
    checkpoint = tfr.TrainingCheckpoint(tmp_path, model)
    options = {"verbose": 0, "callbacks": [checkpoint]}
    model.fit(rows, **options)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.5))
    model.fit(rows, epochs=2, **options)
    momenta = ft.values(model.optimizer.variables)
    again = _vector_model()
    again.compile(keras.optimizers.SGD(0.01, momentum=0.5))
    assert tfr.TrainingCheckpoint(tmp_path, again).restore()
    ft.assert_equal(ft.values(again.optimizer.variables), momenta)


def test_a_model_that_is_not_compiled(tmp_path):
    model = tfr.FlowModel(ft.vector_distribution(2, num_filters=4))
    with pytest.raises(ValueError, match=r"expected a compiled model; call `model.compile\(\)`"):
        tfr.TrainingCheckpoint(tmp_path, model)
