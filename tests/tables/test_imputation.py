"""Missing cells, drawn given the others."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.datasets import load_wine, make_moons

import tfp_realnvp as tfr
from tfp_realnvp.tables import flow_density, stack

_TINY = {"num_flows": 2, "num_couplings": 1, "num_filters": 4, "max_steps": 2}


def test_imputation_by_flows(monkeypatch):
    monkeypatch.setattr(stack, "fit_normal_mixtures", lambda *_: [])
    rows = make_moons(400, noise=0.1, random_state=0)[0]
    options = {"num_flows": 2, "num_couplings": 3, "max_steps": 200, "learning_rate": 5e-3}
    density = tfr.FlowDensity(random_state=0, noise=0.1, **options).fit(rows)
    assert density.flow_gain_[0] > 0.2
    # Proposals come from another distribution, and have to be weighted.
    axis = np.linspace(-4, 4, 1_601)
    for known in (0.0, 0.5):
        p = np.exp(density.score_samples(np.stack([np.full_like(axis, known), axis], axis=1)))
        hole = [[known, np.nan]]
        assert density.score_samples(hole)[0] == pytest.approx(np.log(p.sum() * 0.005), abs=0.2)
        filled = density.impute(hole, 1_000, random_state=0)[:, 0, 1]
        shares = [np.mean(filled < end) for end in (-0.3, 0.2, 0.7, 1.1)]
        expected = np.interp([-0.3, 0.2, 0.7, 1.1], axis, p.cumsum() / p.sum())
        np.testing.assert_allclose(shares, expected, atol=0.12)


@pytest.mark.usefixtures("no_flows")
def test_imputation_of_moons():
    x = make_moons(600, noise=0.1, random_state=0)[0]
    density = tfr.FlowDensity(random_state=0, **_TINY).fit(x)
    # Between the moons' ends there are three places.
    filled = density.impute([[0.5, np.nan]], 400, random_state=0)[:, 0, 1]
    assert [np.mean(filled < -0.2) > 0.2, np.mean(filled > 0.6) > 0.2] == [True, True]
    assert np.mean((filled > 0) & (filled < 0.4)) < 0.2
    # The integral over one column of the density.
    axis = np.linspace(-3, 3, 1_201)
    rows = np.stack([np.full_like(axis, 0.5), axis], axis=1)
    exact = np.log(np.trapezoid(np.exp(density.score_samples(rows)), axis))
    log_marginal = density.score_samples([[0.5, np.nan]])
    np.testing.assert_allclose(log_marginal, exact, atol=0.1)
    # All cells are there.
    np.testing.assert_array_equal(density.impute(x[:5], random_state=0), x[:5])


def test_imputation_of_frames_classes_and_outliers():
    x, y = load_wine(return_X_y=True, as_frame=True)
    density = tfr.FlowDensity(random_state=0, **_TINY).fit(x, y)
    holes = x[:20].mask(np.random.default_rng(0).random([20, x.shape[1]]) < 0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filled = density.impute(holes, random_state=0)
    assert isinstance(filled, pd.DataFrame) and list(filled) == list(x)
    assert filled.notna().all(axis=None) and filled.index.equals(holes.index)
    pd.testing.assert_frame_equal(filled.where(holes.notna()), holes)
    samples = density.impute(holes, 3, random_state=0)
    assert samples.shape == (3, *holes.shape)
    np.testing.assert_array_equal(samples, density.impute(holes, 3, random_state=0))
    assert (samples != density.impute(holes, 3, random_state=1)).any()
    with pytest.raises(ValueError, match="n_samples"):
        density.impute(holes, 0)


def test_poor_proposals_are_noted(monkeypatch):
    x = np.random.default_rng(0).normal(size=[50, 2])
    density = tfr.FlowDensity(random_state=0, **_TINY).fit(x)
    monkeypatch.setattr(flow_density, "_LEAST_EFFECTIVE_SIZE", 1_000)
    monkeypatch.setattr(flow_density, "_POOR_SHARE", 1e-6)
    for call in (density.impute, density.score_samples):
        with pytest.warns(UserWarning, match="for 1 rows .* such as row 2, rest on few proposals"):
            call([[0.0, 1.0], [0.0, 0.0], [0.0, np.nan]])


@pytest.mark.usefixtures("no_flows")
def test_marginals_of_a_row_do_not_depend_on_the_others():
    rng = np.random.default_rng(0)
    x = rng.normal(size=[200, 3]) @ rng.normal(size=[3, 3])
    density = tfr.FlowDensity(random_state=0, **_TINY).fit(x)
    holes = np.where(rng.random([300, 3]) < 0.4, np.nan, np.tile(x, [2, 1])[:300])
    log_probs = density.score_samples(holes)
    np.testing.assert_allclose(density.score_samples(holes[::-1])[::-1], log_probs)
    np.testing.assert_allclose(density.score_samples(holes[7:8]), log_probs[7:8])


# Gaps in the rows of a fit.


def _rows_with_gaps(number, seed=0):
    """Normal rows, complete, and without the second cell where the first is positive."""
    rows = np.random.default_rng(seed).normal(size=[number, 2]) @ [[1.0, 1.0], [0.0, 0.5]]
    return rows, np.where([False, True] & (rows[:, :1] > 0), np.nan, rows)


@pytest.mark.usefixtures("no_flows", "few_components")
def test_rows_with_gaps_are_not_left_out():
    rows, holes = _rows_with_gaps(400)
    density = tfr.FlowDensity(random_state=0).fit(holes)
    # The mean of the complete rows alone is -0.8.
    samples = density.sample(4_000, random_state=0)
    np.testing.assert_allclose(samples.mean(axis=0), rows.mean(axis=0), atol=0.12)
    exact = stats.multivariate_normal([0, 0], [[1, 1], [1, 1.25]]).logpdf(rows)
    assert density.score(rows) > exact.mean() - 0.1
    values = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    marginals = density.score_samples(np.column_stack([np.full(5, np.nan), values]))
    np.testing.assert_allclose(marginals, stats.norm.logpdf(values, 0, np.sqrt(1.25)), atol=0.2)
    truth, test = _rows_with_gaps(400, seed=1)
    samples = density.impute(test, 100, random_state=0)[..., 1]
    low, high = np.quantile(samples, [0.05, 0.95], axis=0)
    is_held = (low < truth[:, 1]) & (truth[:, 1] < high)
    assert 0.84 < is_held[np.isnan(test[:, 1])].mean() < 0.96
    # A row without any cell says nothing, and a copy as much as a weight of two.
    more = np.concatenate([holes, holes, np.full([5, 2], np.nan)])
    twice = tfr.FlowDensity(random_state=0).fit(more)
    weighted = tfr.FlowDensity(random_state=0).fit(holes, sample_weight=np.full(400, 2.0))
    np.testing.assert_allclose(twice.score_samples(test), weighted.score_samples(test))


@pytest.mark.usefixtures("no_flows", "few_components")
def test_equal_rows_with_gaps_get_different_draws():
    # 90 copies of a row are one row of weight 90.
    rng = np.random.default_rng(0)
    rows = np.column_stack([rng.integers(2, size=300), rng.normal(size=300)])
    holes = np.where([False, True] & (rng.random([300, 1]) < 0.6), np.nan, rows)
    with pytest.warns(UserWarning, match="few values: 0"):
        density = tfr.FlowDensity(random_state=0).fit(holes)
    samples = density.sample(2_000, random_state=0)
    assert stats.kstest(samples[:, 1], "norm").statistic < 0.12
    # Draws of columns of few values are such values: peaks are as high as without gaps.
    holes = np.where([True, False] & (rng.random([300, 1]) < 0.3), np.nan, rows)
    with pytest.warns(UserWarning, match="few values: 0"):
        with_gaps, complete = (tfr.FlowDensity(random_state=0).fit(x) for x in (holes, rows))
    assert with_gaps.score(rows) > complete.score(rows) - 0.2


@pytest.mark.usefixtures("no_flows", "few_components")
def test_classes_of_rows_with_gaps():
    x, y = load_wine(return_X_y=True)
    x = x[:, :4]
    holes = np.where(np.random.default_rng(0).random(x.shape) < 0.3, np.nan, x)
    density = tfr.FlowDensity(random_state=0).fit(holes, y)
    probabilities = density.predict_proba(holes)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert density.score_samples(np.full([1, 4], np.nan)) == pytest.approx(0, abs=1e-12)
    # Nothing is known, and all is known.
    nothing = density.predict_proba(np.full([1, 4], np.nan))
    np.testing.assert_allclose(nothing[0], density.class_prior_)
    assert (density.predict(x) == y).mean() > 0.85 > (density.predict(holes) == y).mean() > 0.7
    joint = np.log(probabilities) + density.score_samples(holes)[:, np.newaxis]
    log_probs = joint[np.arange(len(y)), y] - np.log(density.class_prior_[y])
    assert density.score(holes, y) == pytest.approx(log_probs.mean())
