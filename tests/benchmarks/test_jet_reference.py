"""Jet against numbers of the authors' code, google-research/big_vision."""

import pathlib

import numpy as np
import pytest

from benchmarks import jet_reference

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("no_graph_optimizer")]

_FILE = pathlib.Path(__file__).with_name("jet_reference.npz")


def test_numbers_of_the_authors(capsys):
    with np.load(_FILE) as reference:
        # All six spatial masks.
        assert (reference["permutations"] == -1).all(axis=1).sum() == 6
    assert jet_reference.main([str(_FILE)]) == 0
    lines = (line.split(": ") for line in capsys.readouterr().out.splitlines())
    found = {name: float(difference) for name, difference in lines}
    assert found["latents"] < 1e-5 and found["inverse images in float32"] < 1e-4, found
    assert found["log det"] < 1e-5 and found["log det of the inverse"] < 1e-5, found


def test_exit_status_of_other_numbers(tmp_path):
    with np.load(_FILE) as arrays:
        reference = dict(arrays)
    # The numbers are those of all couplings.
    for name in reference:
        if name == "permutations" or name.startswith("weights"):
            reference[name] = reference[name][:2]
    np.savez(tmp_path / "other.npz", **reference)
    assert jet_reference.main([str(tmp_path / "other.npz")]) == 1
