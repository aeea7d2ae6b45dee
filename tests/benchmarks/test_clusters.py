"""Bits/dim and samples with and without clusters."""

import flow_testing as ft
import numpy as np
import pytest

from benchmarks import clusters

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("no_graph_optimizer", "small_compact")]


@pytest.mark.parametrize(("number", "guidance"), [(0, ["0.0"]), (3, ["0.0", "0.15", "0.5"])])
def test_files_and_bits_per_dim(tmp_path, monkeypatch, number, guidance):
    monkeypatch.setattr(clusters, "matrix_rates", lambda: {"float32": 1.0, "bfloat16": 1.0})
    images = ft.grey_levels(80, (8, 8, 1))
    np.savez(tmp_path / "images.npz", train=images[:60], test=images[60:])
    flags = [f"--data={tmp_path / 'images.npz'}", f"--clusters={number}", "--num_filters=2"]
    flags += ["--seconds=1", "--num_samples=100", f"--output={tmp_path / 'samples'}"]
    outcome = clusters.main(flags)
    assert outcome["steps"] >= 1
    assert 0 < outcome["test_importance_weighted"] <= outcome["test"] < 20
    names = sorted(path.name for path in tmp_path.glob("samples*"))
    assert names == [f"samples_{each}.npy" for each in guidance]
    assert np.load(tmp_path / names[-1]).shape == (100, 8, 8, 1)


def test_components_have_the_moments_of_the_images(tmp_path):
    rng = np.random.default_rng(0)
    # The images differ along one direction, by a standard deviation of 20.
    direction = rng.normal(size=[4, 4, 1])
    images = 128 + 20 * rng.normal(size=[400, 1, 1, 1]) * direction / np.abs(direction).max()
    np.savez(tmp_path / "images.npz", train=images.astype(np.uint8), test=images[:9].astype("u1"))
    flags = [f"--data={tmp_path / 'images.npz'}", "--components=1", f"--output={tmp_path / 'pca'}"]
    clusters.main(flags)
    samples = np.load(tmp_path / "pca.npy")
    for moment in (np.mean, np.std):
        np.testing.assert_allclose(moment(samples, axis=0), moment(images, axis=0), atol=2)
