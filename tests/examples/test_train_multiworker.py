"""Two workers resume from the last checkpoint after one of them was killed."""

import json
import pathlib
import time

import flow_testing as ft
import numpy as np
import pytest
import strategy_testing as st
import tensorflow as tf

import tfp_realnvp as tfr

pytestmark = [pytest.mark.full, pytest.mark.slow]

_SCRIPT = pathlib.Path(__file__).parents[2] / "examples" / "train_multiworker.py"
_ARGUMENTS = {"num_scales": 1, "num_couplings": 1, "num_blocks": 0, "num_filters": 3}
_STEPS, _LOG_STEPS = 64, 8


def _start(folder, images, steps=_STEPS):
    flags = [
        f"--dataset={images}",
        f"--output_dir={folder / 'results'}",
        f"--arguments={json.dumps(_ARGUMENTS)}",
        "--batch_size=6",
        "--num_validation=12",
        # 48 training images, 8 steps in a pass.
        f"--epochs={steps // 8}",
        f"--log_steps={_LOG_STEPS}",
    ]
    return st.start_workers(_SCRIPT, flags, folder)


def _last_step(folder):
    latest = tf.train.latest_checkpoint(folder / "results" / "checkpoints")
    return int(latest.rsplit("-", 1)[1]) if latest else 0


def test_a_worker_is_killed(tmp_path):
    images = tmp_path / "images.npz"
    np.savez(images, train=ft.grey_levels(60, (8, 8, 1)), test=ft.grey_levels(10, (8, 8, 1)))
    first, second = _start(tmp_path, images)
    try:
        deadline = time.monotonic() + 120
        while not _last_step(tmp_path):
            assert first.is_alive(), (tmp_path / "worker0.txt").read_text()[-4000:]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        second.kill()
    finally:
        for process in (second, first):
            process.kill()
            process.join()
    step = _last_step(tmp_path)
    assert step % _LOG_STEPS == 0 and 0 < step < _STEPS, step

    # With one more epoch.
    steps = _STEPS + 8
    st.finish_workers(_start(tmp_path, images, steps), tmp_path)
    output = (tmp_path / "worker0.txt").read_text()
    assert f"resuming after step {step}" in output and f"{steps} steps" in output
    assert "ran out of data" not in output
    assert _last_step(tmp_path) == steps
    log = np.genfromtxt(tmp_path / "results" / "log.csv", delimiter=",", names=True)
    assert log["epoch"][-1] == steps / _LOG_STEPS - 1
    assert log["minutes_left"][-1] == 0 < log["minutes_left"][0]
    assert np.isfinite(log["val_bits_per_dim"]).all()
    # Only the chief writes.
    names = {path.name for path in (tmp_path / "results").iterdir()}
    preset = {"config.json", "model.weights.h5", "metadata.json", "README.md"}
    assert names == preset | {".tfp_realnvp.lock", "checkpoints", "flags.txt", "log.csv"}
    model = tfr.FlowModel.from_preset(tmp_path / "results")
    bits = model.predict(ft.grey_levels(3, (8, 8, 1)), verbose=0)
    assert np.isfinite(bits).all()
