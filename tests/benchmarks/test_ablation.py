"""The ablation of additions to the compact model."""

import argparse
import functools
import json

import numpy as np
import pytest

import tfp_realnvp as tfr
from benchmarks import ablation

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("no_graph_optimizer")]


def test_rows_combine():
    combined = ablation.row_settings("spline+conv1x1+average")
    assert combined["layer"] == {"transformer": "rational_quadratic_spline", "mixing": "lu"}
    assert combined["optimizer"]["use_ema"]
    # The rows are not changed by it.
    assert "mixing" not in ablation.ROWS["spline"]["layer"]
    with pytest.raises(ValueError, match=r"expected rows of .*, joined by '\+', got 'cubic'"):
        ablation.row_settings("spline+cubic")


def test_the_rows_that_are_compact():
    row = "conv1x1+split-prior+channels+more-linear"
    shape = (8, 8, 3)
    flow = ablation.make_flow(shape, ablation.row_settings(row))
    compact = tfr.RealNVPImage.compact(shape)
    assert [v.shape for v in flow.variables] == [v.shape for v in compact.variables]
    assert flow.bijectors[0] == compact.bijectors[0]


def test_a_row_is_trained_once(tmp_path, monkeypatch):
    # Measured by a process of its own.
    monkeypatch.setattr(ablation, "matrix_rates", functools.cache(ablation.matrix_rates))
    images = np.random.default_rng(0).integers(0, 256, [48, 4, 4, 1], dtype=np.uint8)
    np.savez(tmp_path / "images.npz", train_images=images[:32], test_images=images[32:])
    arguments = [
        f"--data={tmp_path / 'images.npz'}",
        f"--output_dir={tmp_path / 'out'}",
        "--rows=conv1x1+split-prior",
        "--seeds=3,4",
        "--steps=10",
        "--side_by_side",
    ]
    results = ablation.main(arguments)
    assert [result["seed"] for result in results] == [3, 4]
    values = [result["bits_per_dim"] for result in results]
    assert values[0] != values[1]
    for result in results:
        assert result["steps"] == 10 and result["limit"] == "10 steps"
        # Nothing can be learned of uniform noise, which has 8 bits/dim.
        assert 7.5 < result["importance_weighted"] <= result["bits_per_dim"] < 9
    saved = json.loads((tmp_path / "out" / "results.json").read_text())
    assert saved == results == ablation.main(arguments)
    table = (tmp_path / "out" / "results.md").read_text()
    assert f"| 10 steps | conv1x1+split-prior | {np.mean(values):.3f} |" in table


def test_a_run_that_diverges_is_a_result(tmp_path, monkeypatch):
    images = np.zeros([32, 4, 4, 1], np.uint8)
    np.savez(tmp_path / "images.npz", train_images=images, test_images=images)
    monkeypatch.setitem(ablation.ROWS, "steep", {"optimizer": {"learning_rate": 1e30}})
    monkeypatch.setattr(ablation, "_NUM_DRAWS", 2)
    monkeypatch.setitem(ablation._PLAIN, "width", {"num_filters": 4})
    flags = argparse.Namespace(
        data=tmp_path / "images.npz", policy="float32", steps=5, seconds=None
    )
    diverged = ablation.train_row("steep", 0, flags)
    assert "not finite at step" in diverged["error"]
    finished = ablation.train_row("variational", 0, flags)
    assert finished["importance_weighted"] <= finished["bits_per_dim"]
    also_diverged = {**diverged, "row": "variational", "seed": 1}
    rows = ablation.as_markdown([finished, also_diverged, diverged])
    expected = f"| 5 steps | variational | | | {finished['bits_per_dim']:.3f}, diverged | |"
    assert expected in rows and "| 5 steps | steep | | | diverged | |" in rows
