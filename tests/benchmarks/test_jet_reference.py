"""Jet against numbers of the authors' code, google-research/big_vision."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import jet_reference

_FILE = pathlib.Path(__file__).with_name("jet_reference.npz")


@pytest.fixture(scope="module")
def reference():
    with np.load(_FILE) as arrays:
        return dict(arrays)


def test_numbers_of_the_authors(reference):
    # All six spatial masks, and two blocks in each network.
    assert (reference["permutations"] == -1).all(axis=1).sum() == 6
    found = jet_reference.differences(reference)
    assert found["latents"] < 1e-5 and found["inverse images"] < 1e-4, found
    assert found["log det"] < 1e-5 and found["log det of the inverse"] < 1e-5, found
    assert found["inverse images in float32"] < 1e-4, found


def test_numbers_of_the_authors_under_xla(reference):
    flow = jet_reference.loaded_flow(reference, "float32")
    latents, log_det = tf.function(flow.inverse_and_log_det, jit_compile=True)(reference["images"])
    np.testing.assert_allclose(latents, reference["latents"], atol=1e-4)
    np.testing.assert_allclose(log_det, reference["log_det"], rtol=1e-5)


def test_exit_status(reference, tmp_path, capsys):
    assert jet_reference.main([str(_FILE)]) == 0
    assert "log det: " in capsys.readouterr().out
    reference["log_det"] = reference["log_det"] * np.float32(1.001)
    np.savez(tmp_path / "other.npz", **reference)
    assert jet_reference.main([str(tmp_path / "other.npz")]) == 1
