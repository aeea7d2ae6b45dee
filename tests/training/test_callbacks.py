import pathlib
import time

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_realnvp as tfr

_IMAGES = ft.grey_levels(32, (4, 4, 1))


def _model():
    model = tfr.FlowModel(
        ft.flow_distribution((4, 4, 1), num_scales=1, num_blocks=0, num_couplings=1)
    )
    model.compile()
    return model


class _Values(keras.callbacks.Callback):
    """Puts given values into the logs of the epochs."""

    def __init__(self, values):
        super().__init__()
        self._values = iter(values)

    def on_epoch_end(self, epoch, logs):
        logs["val_bits_per_dim"] = next(self._values)


def _fit(checkpoint, values, **options):
    return checkpoint.model.fit(
        _IMAGES,
        batch_size=8,
        verbose=0,
        callbacks=[_Values(values), checkpoint, *options.pop("callbacks", [])],
        **options,
    )


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


def test_checkpoints_within_an_epoch(tmp_path):
    class Watch(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.steps = []

        def on_train_batch_end(self, batch, logs=None):
            latest = tf.train.latest_checkpoint(tmp_path / "checkpoints")
            self.steps.append(latest and int(latest.rsplit("-", 1)[1]))

    watch = Watch()
    checkpoint = tfr.TrainingCheckpoint(tmp_path, _model(), save_seconds=1e-9)
    _fit(checkpoint, [3.0, 2.0], epochs=2, callbacks=[watch])
    # None after the last step of an epoch: it waits for the validation.
    assert watch.steps == [1, 2, 3, 3, 5, 6, 7, 7]
    assert pathlib.Path(tf.train.latest_checkpoint(tmp_path / "checkpoints")).name == "ckpt-8"


def test_no_checkpoint_between_the_end_and_its_validation(tmp_path):
    model = _model()
    budget = tfr.LearningRateBudget(steps=3)
    checkpoint = tfr.TrainingCheckpoint(tmp_path, model, budget=budget, save_seconds=1e-9)
    steps = []
    save = checkpoint._manager.save
    checkpoint._manager.save = lambda number: steps.append(number) or save(number)
    model.fit(_IMAGES, batch_size=8, epochs=9, verbose=0, callbacks=[budget, checkpoint])
    assert steps == [1, 2, 3]


@pytest.mark.parametrize("argument", ["save_seconds", "patience"])
def test_bad_arguments(argument, tmp_path):
    with pytest.raises(ValueError, match=r"expected (positive save_seconds|a positive patience)"):
        tfr.TrainingCheckpoint(tmp_path, _model(), **{argument: 0})


def test_the_clock_runs_within_fit_only():
    model = _model()
    budget = tfr.LearningRateBudget(seconds=1000.0)
    used = []
    for _ in range(2):
        model.fit(_IMAGES, batch_size=8, verbose=0, callbacks=[budget])
        used.append(budget.elapsed_seconds)
        time.sleep(0.05)
        assert budget.elapsed_seconds == used[-1]
    assert 0 < used[0] < used[1]
    np.testing.assert_allclose(budget.fraction, used[1] / 1000)
