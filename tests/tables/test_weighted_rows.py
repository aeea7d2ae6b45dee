"""Rows with weights."""

import numpy as np

from tfp_realnvp.tables import weighted_rows


def test_a_row_of_weight_two_is_in_two_folds():
    weights = np.array([2.0, 1.0, 0.5, 3.0])
    folds = weighted_rows.fold_weights(weights, 3, np.random.default_rng(0))
    assert folds.shape == (3, 4)
    assert np.count_nonzero(folds, axis=0).tolist() == [2, 1, 1, 3]
    np.testing.assert_allclose(folds.max(axis=0), [1.0, 1.0, 0.5, 1.0])
    np.testing.assert_allclose(folds.sum(axis=0), weights)
    # There are no more folds than rows.
    assert weighted_rows.fold_weights(np.ones(2), 5, np.random.default_rng(0)).shape == (2, 2)
