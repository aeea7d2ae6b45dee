"""Rows with weights."""

import numpy as np
import pytest

from tfp_realnvp.tables.table import Rows


@pytest.mark.parametrize("seed", range(3))
def test_copies_of_a_row_are_in_one_fold(seed):
    rng = np.random.default_rng(seed)
    rows = Rows(np.zeros([200, 1]), rng.choice([0.5, 1.0, 3.0, 700.0], 200))
    folds = rows.folds(5, np.random.default_rng(0))
    # Each fold has its share of rows, and of their weight.
    assert np.bincount(folds).tolist() == [40] * 5
    shares = np.bincount(folds, rows.weights) / rows.weights.sum()
    np.testing.assert_allclose(shares, 0.2, atol=0.05)
    # What counts are ratios of weights.
    heavier = rows._replace(weights=10 * rows.weights)
    np.testing.assert_array_equal(heavier.folds(5, np.random.default_rng(0)), folds)
    # There are no more folds than rows.
    assert sorted(rows.where(np.arange(200) < 3).folds(5, rng)) == [0, 1, 2]
