"""The benchmark of vectors."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import vectors

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("no_graph_optimizer")]


def test_the_density_of_the_table_is_known():
    noise = np.random.RandomState(5).normal(size=[1, vectors.NUM_COLUMNS])
    rows, log_prob = vectors.make_table(1, 5)
    np.testing.assert_allclose(rows, vectors.warp(noise)[0], rtol=1e-6)
    steps = noise + 1e-6 * np.eye(vectors.NUM_COLUMNS)
    jacobian = (vectors.warp(steps)[0] - vectors.warp(noise)[0]) / 1e-6
    normal = -0.5 * (noise**2 + np.log(2 * np.pi)).sum()
    expected = normal - np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["ours", "tfb.RealNVP", "tfb.MaskedAutoregressiveFlow"])
def test_a_contender(name, tmp_path, capsys, monkeypatch):
    # A clock that ticks at each look: a few steps and calls.
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)
    monkeypatch.setattr(vectors, "time", clock)
    options = "--seconds=5 --rounds=1 --num_rows=500 --num_couplings=2 --num_units=4".split()
    outcome = vectors.main([*options, f"--contenders={name}", f"--output_dir={tmp_path}"])
    assert json.loads((tmp_path / "results.json").read_text()) == outcome
    [(found, result)] = outcome["contenders"].items()
    assert found == name and result["steps"] > 0 and result["parameters"] > 0
    # The flow is not the density of the table.
    assert 0 < result["kl_from_table"] < 100
    expected = outcome["table_nats"] + result["kl_from_table"]
    assert result["held_out_nats"] == pytest.approx(expected, abs=1e-4)
    assert f"| {name} | {result['parameters']:,} |" in capsys.readouterr().out
