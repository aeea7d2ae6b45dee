"""Bits/dim and samples with and without clusters."""

import flow_testing as ft
import numpy as np
import pytest

from benchmarks import clusters

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("no_graph_optimizer")]


@pytest.mark.parametrize(("number", "guidance"), [(0, ["0.0"]), (3, ["0.0", "0.15", "0.5"])])
def test_files_and_bits_per_dim(tmp_path, monkeypatch, number, guidance):
    monkeypatch.setattr(clusters, "bfloat16_pays", lambda rates: False)
    images = ft.grey_levels(80, (8, 8, 1))
    np.savez(tmp_path / "images.npz", train=images[:60], test=images[60:])
    flags = [f"--data={tmp_path / 'images.npz'}", f"--clusters={number}", "--num_filters=2"]
    flags += ["--seconds=1", "--num_samples=100", f"--output={tmp_path / 'samples'}"]
    outcome = clusters.main(flags)
    assert outcome["steps"] >= 1 and 0 < outcome["test"] < 20
    names = sorted(path.name for path in tmp_path.glob("samples*"))
    assert names == [f"samples_{each}.npy" for each in guidance]
    assert np.load(tmp_path / names[-1]).shape == (100, 8, 8, 1)
