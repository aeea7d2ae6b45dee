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


def test_moments_and_draws_are_weighted():
    rng, weights = np.random.default_rng(0), np.array([2.0, 1.0, 0.5, 4.0])
    rows = weighted_rows.Rows(rng.normal(size=[4, 2]), weights)
    mean, covariance = rows.covariance()
    np.testing.assert_allclose(mean, np.average(rows.values, axis=0, weights=weights))
    np.testing.assert_allclose(covariance, np.cov(rows.values.T, aweights=weights, ddof=0))
    drawn = rows.draw([20_000], rng)
    shares = [(drawn == row).all(axis=1).mean() for row in rows.values]
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.02)
