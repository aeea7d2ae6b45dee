"""The share of recognized samples."""

import numpy as np
import pytest

from benchmarks import recognition
from tfp_realnvp.data import load_arrays

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("no_graph_optimizer")]


def test_shares(tmp_path, capsys):
    digits = load_arrays("digits").test
    path = tmp_path / "samples.npy"
    # Half of them are gray.
    np.save(path, np.concatenate([digits, np.full_like(digits, 8)]))
    shares = recognition.main([str(path)])
    assert shares["test digits"] > 0.8 > 0.1 > shares["independent pixels"]
    assert shares[str(path)] == pytest.approx(shares["test digits"] / 2)
    share = f"{path}: {shares[str(path)]:.1%} of {2 * len(digits)} with confidence above 0.9"
    assert share in capsys.readouterr().out


def test_other_images(tmp_path):
    np.save(tmp_path / "samples.npy", np.zeros([3, 8, 8, 3], np.uint8))
    with pytest.raises(ValueError, match=r"expected .*\[N, 8, 8, 1\], got \(3, 8, 8, 3\)"):
        recognition.main([str(tmp_path / "samples.npy")])
