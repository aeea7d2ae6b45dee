import doctest
import functools
import importlib
import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import quality, report, run
from benchmarks.comparison import WorkerError, WorkerProcess
from benchmarks.rows import parse_row
from tfp_realnvp.training import learning_rate

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("no_graph_optimizer")]


def _no_machine(threads, bfloat16=500.0):
    return {"threads": threads, "matrix_gflops": {"float32": 120.0, "bfloat16": bfloat16}}


def test_a_run_measures_speed_and_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "describe_machine", _no_machine)
    pair = "--pair=memory-saving:memory-plain"
    run.main(["--quick", pair, "--sizes=tiny", "--what=log_prob", f"--output_dir={tmp_path}"])
    [entry] = json.loads((tmp_path / "results.json").read_text())["entries"]
    assert len(entry["ratios"]) == 3 and entry["ratio"] == sorted(entry["ratios"])[1]
    for side in entry["sides"]:
        assert side["is_finite"] and side["images_per_second"] > 0
        assert 0 < side["built_mb"] < side["first_step_mb"] <= side["peak_mb"]
    assert (tmp_path / "results.md").read_text().count("| memory-saving | memory-plain |") == 2


@pytest.mark.parametrize(
    ("rate", "flags"), [(110.0, []), (400.0, []), (110.0, ["--only=ours-bf16"])]
)
def test_bfloat16_is_left_out_where_it_does_not_pay(rate, flags, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "describe_machine", lambda threads: _no_machine(threads, rate))
    monkeypatch.setattr(run, "_measure", lambda *_: {"reason": "measured"})
    run.main(["--sizes=small", f"--output_dir={tmp_path}", *flags])
    entries = json.loads((tmp_path / "results.json").read_text())["entries"]
    left_out = [e["rows"] for e in entries if e["reason"] != "measured"]
    in_bfloat16 = [e["rows"] for e in entries if any("bf16" in row for row in e["rows"])]
    assert left_out == (in_bfloat16 if rate < 120 and not flags else [])
    assert in_bfloat16


def test_a_row_of_another_checkout(tmp_path):
    (tmp_path / "tfp_realnvp").mkdir()
    (tmp_path / "tfp_realnvp" / "__init__.py").write_text("raise ImportError('the other one')")
    spec = parse_row(f"ours-f32@{tmp_path}")
    with pytest.raises(WorkerError, match="ImportError: the other one"):
        WorkerProcess({**spec, "size": "tiny", "threads": 1})
    with pytest.raises(ValueError, match="a folder with tfp_realnvp"):
        parse_row(f"ours-f32@{tmp_path / 'tfp_realnvp'}")
    with pytest.raises(ValueError, match="a row of this package"):
        parse_row(f"torch-f32@{tmp_path}")


def test_report():
    side = {"images_per_second": 64.0, "first_step_seconds": 2.0, "built_mb": 100.0}
    side |= {"first_step_mb": 200.0, "peak_mb": 300.0, "num_parameters": 1234, "is_finite": True}
    saving, nowhere = {**side, "peak_mb": 240.0}, {**side, "is_finite": False}
    entry = {"size": "images64", "what": "train", "ratios": [0.7, 0.8], "ratio": 0.8}
    entries = [
        {**entry, "rows": ["memory-saving", "memory-plain"], "sides": [saving, side]},
        {**entry, "rows": ["ours-f32", "glow"], "sides": [side, nowhere]},
        {**entry, "rows": ["ours-f32", "torch-f32"], "reason": "failed: no torch"},
    ]
    outcome = {"contender": "glow", "bits_per_dim": 4.0, "train_bits_per_dim": 3.9, "steps": 7}
    outcome |= {"num_parameters": 5, "samples": 9, "finite_samples": 8}
    results = {"machine": _no_machine(1), "entries": entries, "quality": [outcome]}
    lines = report.markdown(results).split("\n")
    assert "| memory-saving | memory-plain | 0.70 | 0.40 | 1.25 |" in lines
    assert "| train | memory-saving | 1,234 | 64.0 | 2.0 | 100 | 140 | 40 |" in lines
    assert "| train | ours-f32 | 1,234 | 64.0 | 2.0 | 100 | 200 | – |" in lines
    assert "| train | ours-f32 | torch-f32 | failed: no torch | – | – |" in lines
    assert "| glow | 4.000 | 3.900 | 7 | 5 | 9 | 8 | – |" in lines
    assert report.sentence(entries[1]) == (
        "images64, train: ours-f32 against glow (results not finite): **0.80** (0.70–0.80), "
        "64.0 and 64.0 images/s"
    )


@pytest.mark.parametrize("contender", ["ours", "pytorch"])
def test_bits_per_dim_of_training_and_test_images(contender, monkeypatch, tmp_path):
    if contender == "pytorch":
        pytest.importorskip("torch").set_num_threads(1)
    images = np.random.default_rng(0).integers(0, 256, [80, 4, 4, 3], dtype=np.uint8)
    np.savez(tmp_path / "images.npz", train_images=images, test_images=images[:70])
    # A clock that ticks at each look: a few steps fit into ten minutes.
    tick = itertools.count(0, 100).__next__
    clock = SimpleNamespace(perf_counter=tick, monotonic=tick)
    for module in (quality, learning_rate):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(quality, "matrix_rates", lambda: {"float32": 1.0, "bfloat16": 1.0})
    monkeypatch.setattr(quality, "_NUM_SAMPLES", 100)
    if contender == "ours":
        small = functools.partial(quality.contender_class("ours"), num_filters=4, num_couplings=1)
        monkeypatch.setattr(quality, "contender_class", {"ours": small}.get)
    outcome = quality.main([f"--data={tmp_path / 'images.npz'}", f"--contender={contender}"])
    assert 2 <= outcome["steps"] <= 5 and outcome["finite_samples"] == outcome["samples"] == 100
    assert math.isfinite(outcome["bits_per_dim"])
    # The same images, the same mode, the same weights.
    assert outcome["train_bits_per_dim"] == outcome["bits_per_dim"]
    assert outcome.get("largest_latent_error", 0.0) < 1e-2


@pytest.mark.parametrize("name", ["sizes", "quality"])
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module(f"benchmarks.{name}")).failed == 0
