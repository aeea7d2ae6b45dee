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


@pytest.mark.parametrize("factor", [0.1, 1 / 60, 7.3, 1e-150, 1e100])
def test_merged_weights_do_not_depend_on_their_scale(factor):
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=[40, 2]), rng.integers(1, 8, 40)
    values[::3, 1] = np.nan
    expected = Rows.merged(values, weights)
    # A row of weight three, or three copies of weight one, some of them with rounding errors.
    heavier = factor * np.repeat(weights, 3)
    thrice = Rows.merged(np.repeat(values, 3, axis=0), heavier)
    copies = Rows.merged(
        np.repeat(values, weights, axis=0), np.full(weights.sum(), 3 * (factor / 3))
    )
    for rows in (Rows.merged(values, factor * weights), thrice, copies):
        np.testing.assert_array_equal(rows.weights, expected.weights)
    repeated = expected.repeated()
    is_light = np.isclose(repeated.weights, expected.weights.min(), rtol=1e-6)
    assert is_light[np.isnan(repeated.values[:, 1])].all()
    # Rows of the same weight are in the same order, whatever the rounding errors.
    folds = [rows.folds(5, np.random.default_rng(0)) for rows in (expected, thrice, copies)]
    np.testing.assert_array_equal(folds[1:], folds[:1] * 2)


def test_the_number_of_rows_does_not_grow_with_weights():
    values = np.random.default_rng(0).normal(size=50)
    rows = Rows(np.zeros([50, 1]), np.full(50, 900.0))
    assert rows.number == pytest.approx(50)
    _, error = rows.mean_and_error(values)
    assert error == pytest.approx(values.std() / np.sqrt(50))
    # One row that is all of the weight.
    assert rows._replace(weights=np.append(1e9, np.ones(49))).number == pytest.approx(1)


def test_moments_and_draws_are_weighted():
    rng, weights = np.random.default_rng(0), np.array([2.0, 1.0, 0.5, 4.0])
    rows = Rows(rng.normal(size=[4, 2]), weights)
    mean, covariance = rows.covariance()
    np.testing.assert_allclose(mean, np.average(rows.values, axis=0, weights=weights))
    np.testing.assert_allclose(covariance, np.cov(rows.values.T, aweights=weights, ddof=0))
    drawn = rows.draw([20_000], rng)
    shares = [(drawn == row).all(axis=1).mean() for row in rows.values]
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.02)
