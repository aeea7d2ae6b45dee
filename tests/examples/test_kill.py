"""A training run that is killed and restarted has the results of an uninterrupted run."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import flow_testing as ft
import h5py
import numpy as np
import tensorflow as tf
from PIL import Image

_SCRIPT = pathlib.Path(__file__).parents[2] / "examples" / "train_image.py"
_NUM_KILLS = 2
_LOG_STEPS = 30
_STEPS = 300


def _start(folder, images, save_minutes):
    with (folder.parent / f"{folder.name}.txt").open("ab") as output:
        return subprocess.Popen(
            [
                sys.executable,
                _SCRIPT,
                f"--dataset={images}",
                f"--output_dir={folder}",
                "--configuration=paper",
                "--num_scales=1",
                "--num_couplings=1",
                "--num_blocks=0",
                "--num_filters=4",
                "--batch_size=5",
                "--average=0.9",
                f"--epochs={_STEPS / 20}",
                "--num_validation=20",
                f"--log_steps={_LOG_STEPS}",
                f"--save_minutes={save_minutes}",
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            # One thread makes the order of sums deterministic.
            env={**os.environ, "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"},
        )


def _finish(process, folder):
    assert process.wait(timeout=240) == 0, (folder.parent / f"{folder.name}.txt").read_text()


def _log(folder):
    return np.genfromtxt(folder / "log.csv", delimiter=",", names=True)


def test_killed_twice(tmp_path):
    images = tmp_path / "images.npz"
    np.savez(images, train=ft.grey_levels(120, (8, 8, 1)), test=ft.grey_levels(10, (8, 8, 1)))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = _start(whole, images, save_minutes=1)
    state = killed / "checkpoints" / "checkpoint"
    steps = []
    for _ in range(_NUM_KILLS):
        process = _start(killed, images, save_minutes=2e-3)
        before = state.stat().st_mtime_ns if state.exists() else 0
        while not state.exists() or state.stat().st_mtime_ns == before:
            assert process.poll() is None, (tmp_path / "killed.txt").read_text()
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the process ended before the signal"
        latest = tf.train.latest_checkpoint(state.parent)
        steps.append(int(latest.rsplit("-", 1)[1]))
    _finish(_start(killed, images, save_minutes=2e-3), killed)
    _finish(undisturbed, whole)

    assert 0 < steps[0] < steps[1] < _STEPS, steps
    reports = [json.loads((folder / "report.json").read_text()) for folder in (killed, whole)]
    assert [report["steps"] for report in reports] == [_STEPS, _STEPS]
    assert reports[0] == reports[1]
    logs = [_log(folder) for folder in (killed, whole)]
    for log in logs:
        np.testing.assert_array_equal(log["epoch"], np.arange(len(log)))
        expected = np.minimum(_LOG_STEPS * (log["epoch"] + 1), _STEPS)
        np.testing.assert_array_equal(log["step"], expected)
        assert log["step"][-1] == _STEPS
    # The training metrics of an interrupted epoch cover only its last steps.
    np.testing.assert_array_equal(logs[0]["val_bits_per_dim"], logs[1]["val_bits_per_dim"])
    weights = "model.weights.h5"
    np.testing.assert_equal(_arrays(killed / weights), _arrays(whole / weights))
    for path in killed.rglob("*"):
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".png":
            with Image.open(path) as image:
                image.load()


def _arrays(path):
    arrays = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: arrays.update({name: item[()]} if hasattr(item, "dtype") else {})
        )
    assert arrays
    return arrays
