"""A training run that is killed or interrupted, and restarted."""

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
import pytest
import tensorflow as tf
from PIL import Image

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("no_graph_optimizer")]

_SCRIPT = pathlib.Path(__file__).parents[2] / "examples" / "train_paper.py"
_NUM_KILLS = 2
_LOG_STEPS = 30
_STEPS = 300
_REPORT = {"bits_per_dim": {"Real NVP": {}}}


def _flags(folder, images, save_minutes, log_steps):
    return [
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
        f"--log_steps={log_steps}",
        f"--save_minutes={save_minutes}",
    ]


def _start(folder, images, save_minutes, log_steps=_LOG_STEPS):
    with (folder.parent / f"{folder.name}.txt").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, _SCRIPT, *_flags(folder, images, save_minutes, log_steps)],
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


def test_interrupted(tmp_path, run_script, capsys):
    images, folder = tmp_path / "images.npz", tmp_path / "run"
    np.savez(images, train=ft.grey_levels(120, (8, 8, 1)), test=ft.grey_levels(10, (8, 8, 1)))
    # No other checkpoint before the end.
    options = {"save_minutes": 1000, "log_steps": 1000}
    process = _start(folder, images, **options)
    # Its logger opens the file when training begins, and the first step takes seconds.
    while not (folder / "log.csv").exists():
        assert process.poll() is None, (tmp_path / "run.txt").read_text()
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=240) == 130
    step = int(tf.train.latest_checkpoint(folder / "checkpoints").rsplit("-", 1)[1])
    *_, saved, interrupted, command = (tmp_path / "run.txt").read_text().splitlines()
    assert 0 < step < _STEPS and saved == f"saved a checkpoint of step {step}"
    assert interrupted == "interrupted; to go on:"
    assert command.split()[2:] == _flags(folder, images, **options)
    run_script("train_paper", *_flags(folder, images, **options), write_report=lambda *_: _REPORT)
    assert f"resuming after step {step}\n" in capsys.readouterr().out
    assert json.loads((folder / "metadata.json").read_text())["card"]["steps"] == _STEPS


def _arrays(path):
    arrays = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: arrays.update({name: item[()]} if hasattr(item, "dtype") else {})
        )
    assert arrays
    return arrays
