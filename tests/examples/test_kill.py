"""A training run that is killed or interrupted, and restarted."""

import json
import os
import pathlib
import random
import signal
import time

import flow_testing as ft
import forked
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import tfp_realnvp as tfr

pytestmark = [pytest.mark.full, pytest.mark.slow]

_SCRIPT = pathlib.Path(__file__).parents[2] / "examples" / "train_paper.py"
_LOG_STEPS = 30
_STEPS = 300


def _flags(folder, images, save_minutes):
    tiny = "--configuration=paper --num_scales=1 --num_couplings=1 --num_blocks=0 --num_filters=4"
    return [
        f"--dataset={images}",
        f"--output_dir={folder}",
        *tiny.split(),
        "--batch_size=5",
        "--average=0.9",
        f"--epochs={_STEPS / 20}",
        "--num_validation=20",
        f"--log_steps={_LOG_STEPS}",
        f"--save_minutes={save_minutes}",
    ]


def _output(folder):
    return folder.parent / f"{folder.name}.txt"


def _start(folder, images, save_minutes):
    # One thread makes the order of sums deterministic.
    threads = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    code = forked.script(_SCRIPT, *_flags(folder, images, save_minutes), **threads)
    return forked.start(code, folder.parent, _output(folder))


def _finish(process, folder):
    process.join(240)
    assert process.exitcode == 0, _output(folder).read_text()


def _log(folder):
    return np.genfromtxt(folder / "log.csv", delimiter=",", names=True)


def test_killed_and_interrupted(tmp_path):
    images = tmp_path / "images.npz"
    np.savez(images, train=ft.grey_levels(120, (8, 8, 1)), test=ft.grey_levels(10, (8, 8, 1)))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    undisturbed = _start(whole, images, save_minutes=1)
    state = stopped / "checkpoints" / "checkpoint"
    steps = []
    for sent, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        process = _start(stopped, images, save_minutes=2e-3)
        before = state.stat().st_mtime_ns if state.exists() else 0
        while not state.exists() or state.stat().st_mtime_ns == before:
            assert process.is_alive(), _output(stopped).read_text()
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.4))
        os.kill(process.pid, sent)
        process.join(240)
        assert process.exitcode == status, "the process ended before the signal"
        latest = tf.train.latest_checkpoint(state.parent)
        steps.append(int(latest.rsplit("-", 1)[1]))
    *_, saved, interrupted, command = _output(stopped).read_text().splitlines()
    assert saved == f"saved a checkpoint of step {steps[1]}"
    assert interrupted == "interrupted; to go on:"
    assert command.split()[2:] == _flags(stopped, images, save_minutes=2e-3)
    _finish(_start(stopped, images, save_minutes=2e-3), stopped)
    _finish(undisturbed, whole)

    for step in steps:
        assert f"resuming after step {step}\n" in _output(stopped).read_text()
    assert 0 < steps[0] < steps[1] < _STEPS, steps
    reports = [json.loads((folder / "report.json").read_text()) for folder in (stopped, whole)]
    assert [report["steps"] for report in reports] == [_STEPS, _STEPS]
    assert reports[0] == reports[1]
    logs = [_log(folder) for folder in (stopped, whole)]
    for log in logs:
        np.testing.assert_array_equal(log["epoch"], np.arange(len(log)))
        expected = np.minimum(_LOG_STEPS * (log["epoch"] + 1), _STEPS)
        np.testing.assert_array_equal(log["step"], expected)
        assert log["step"][-1] == _STEPS
    # The training metrics of an interrupted epoch cover only its last steps.
    np.testing.assert_array_equal(logs[0]["val_bits_per_dim"], logs[1]["val_bits_per_dim"])
    models = [tfr.FlowModel.from_preset(folder) for folder in (stopped, whole)]
    ft.assert_equal(models[0].get_weights(), models[1].get_weights())
    for path in stopped.rglob("*"):
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
