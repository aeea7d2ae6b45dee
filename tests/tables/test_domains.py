"""Bounded and periodic columns."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import tfp_realnvp as tfr
from tfp_realnvp.tables.domains import Interval

_TINY = {"num_flows": 2, "num_couplings": 1, "num_filters": 4, "max_steps": 2, "random_state": 0}

pytestmark = pytest.mark.usefixtures("no_flows")


@pytest.mark.parametrize("low", [-np.inf, 0.0, -3.0, 9.999])
@pytest.mark.parametrize("high", [np.inf, 10.0, 1e6])
def test_an_interval_is_a_line(low, high):
    interval = Interval.fit(low, high, 0.0, 9.9995, 1e-3 if low == 9.999 else 0.1)
    line = np.linspace(-4, 4, 101)
    column = interval.from_line(line)
    assert (np.diff(column) >= 0).all() and column[0] >= low and column[-1] <= high
    inside = (column > low) & (column < high)
    np.testing.assert_allclose(interval.to_line(column)[inside], line[inside], atol=1e-6)
    near = interval.from_line(line[inside] + 1e-4)
    slopes = 1e-4 / (near - column[inside])
    middle = interval.from_line(line[inside] + 5e-5)
    np.testing.assert_allclose(np.exp(interval.log_slope(middle)), slopes, rtol=2e-3)
    # The bounds are numbers of a finite density.
    assert np.isfinite(interval.to_line(np.array([low, high]).clip(0, 20))).all()


def test_a_uniform_square():
    rng = np.random.default_rng(0)
    train, test = rng.random([2, 1_000, 2]) * [1, 1_000]
    density = tfr.FlowDensity(bounds={0: (0, 1), 1: (0, 1_000)}, **_TINY).fit(train)
    assert density.score(test) == pytest.approx(-np.log(1_000), abs=0.02)
    assert density.score_held_out_ == pytest.approx(-np.log(1_000), abs=0.02)
    samples = density.sample(5_000, random_state=0) / [1, 1_000]
    assert samples.min() >= 0 and samples.max() <= 1
    assert stats.kstest(samples.ravel(), "uniform").pvalue > 1e-3
    outside = [[-1e-9, 500], [0.5, 1_001]]
    assert density.score_samples(outside).tolist() == [-np.inf, -np.inf]
    assert density.score_samples([[2, np.nan]]).tolist() == [-np.inf]
    assert np.isfinite(density.score_samples([[0, 0], [1, 1_000]])).all()
    # p(first column) is 1.
    log_marginals = density.score_samples([[0.5, np.nan], [0.1, np.nan]])
    np.testing.assert_allclose(log_marginals, 0, atol=0.1)
    filled = density.impute([[0.5, np.nan]], 1_000, random_state=0)[:, 0, 1]
    assert stats.kstest(filled, "uniform", (0, 1_000)).pvalue > 1e-3


def test_bounds_far_away_and_rounded_columns():
    rng = np.random.default_rng(0)
    counts = rng.poisson([2.0, 40.0], [800, 2])
    rows = np.column_stack([counts, 10 + rng.normal(size=800) + counts[:, 0]])
    train, test = np.split(rows, 2)
    frame = pd.DataFrame(train, columns=["few", "many", "length"])
    plain = tfr.FlowDensity(**_TINY).fit(frame)
    bounds = {"few": (0, None), "many": [0, 1_000], 2: (-50, None)}
    bounded = tfr.FlowDensity(bounds=bounds, **_TINY)
    bounded.fit(frame)
    assert bounded.score(test) > plain.score(test) - 0.02
    np.testing.assert_array_equal(bounded.rounding_widths_, plain.rounding_widths_)
    samples = bounded.sample(1_000, random_state=0)
    assert samples["few"].min() == 0 and samples["few"].mean() == pytest.approx(2, abs=0.3)


def test_directions():
    rng = np.random.default_rng(0)
    angles = rng.vonmises(0, 1, 1_200)
    speeds = 5 + 2 * np.sin(angles) + rng.normal(size=1_200)
    frame = pd.DataFrame({"wind": np.degrees(angles) % 360, "speed": speeds})
    train, test = frame[:600], frame[600:]
    density = tfr.FlowDensity(periods={"wind": 360}, **_TINY).fit(train)
    exact = stats.vonmises(1).logpdf(angles) - np.log(180 / np.pi)
    exact += stats.norm(5 + 2 * np.sin(angles)).logpdf(speeds)
    assert density.score(test) == pytest.approx(exact[600:].mean(), abs=0.08)
    assert density.score_held_out_ == pytest.approx(exact[:600].mean(), abs=0.08)
    log_probs = [
        density.score_samples(frame[:200].assign(wind=wind)) for wind in (0, 360, -720, 360 - 1e-9)
    ]
    np.testing.assert_allclose(log_probs[1:], log_probs[:1] * np.ones([3, 1]), atol=1e-6)
    samples = density.sample(4_000, random_state=0)["wind"]
    assert samples.min() >= 0 and samples.max() < 360
    assert abs(np.exp(1j * np.radians(samples)).mean()) == pytest.approx(0.446, abs=0.05)
    # The integral over one column: of the density, and by imputation.
    axis = np.linspace(0, 360, 721)
    row = pd.DataFrame({"wind": np.nan, "speed": [7.0]})
    p = np.exp(density.score_samples(pd.DataFrame({"wind": axis, "speed": 7.0})))
    log_marginal = density.score_samples(row)[0]
    assert np.log(np.trapezoid(p, axis)) == pytest.approx(log_marginal, abs=0.1)
    filled = np.radians(density.impute(row, 2_000, random_state=0)[:, 0, 0])
    expected = np.trapezoid(p * np.exp(1j * np.radians(axis)), axis) / np.trapezoid(p, axis)
    assert abs(np.exp(1j * filled).mean() - expected) < 0.06
    known = pd.DataFrame({"wind": [359.0], "speed": np.nan})
    axis = np.linspace(-5, 15, 801)
    p = np.exp(density.score_samples(pd.DataFrame({"wind": 359.0, "speed": axis})))
    log_marginal = density.score_samples(known)[0]
    assert np.log(np.trapezoid(p, axis)) == pytest.approx(log_marginal, abs=0.1)


@pytest.mark.usefixtures("few_components")
@pytest.mark.parametrize("period", [2 * np.pi, 1.0])
def test_whole_turns_of_other_periods(period):
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.uniform(0, period, 200), rng.normal(size=200)])
    turned = x + np.outer(rng.integers(-3, 4, 200), [period, 0])
    density = tfr.FlowDensity(periods={0: period}, **_TINY)
    expected = density.fit(x).score_samples(x)
    for rows in (turned, np.concatenate([x, turned])):
        np.testing.assert_allclose(density.fit(rows).score_samples(x), expected, atol=1e-6)


@pytest.mark.usefixtures("few_components")
@pytest.mark.filterwarnings("ignore:FlowDensity. some columns:UserWarning")
def test_rounded_directions_are_rounded_after_whole_turns():
    rng = np.random.default_rng(0)
    hours = np.column_stack([rng.integers(0, 24, 300), rng.normal(size=300)])
    turned = hours + np.outer(rng.integers(-3, 4, 300), [24, 0])
    density = tfr.FlowDensity(periods={0: 24}, **_TINY)
    np.testing.assert_array_equal(density.fit(hours).rounding_widths_, [1, 0])
    expected = density.score_samples(hours)
    np.testing.assert_allclose(density.fit(turned).score_samples(hours), expected, atol=1e-6)


def test_columns_whose_names_are_numbers():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({1: rng.exponential(size=60), 2: rng.normal(size=60)})
    density = tfr.FlowDensity(bounds={1: (0, None)}, **_TINY).fit(frame)
    samples = density.sample(500, random_state=0)
    assert samples[1].min() >= 0 > samples[2].min()
    assert density.score_samples(pd.DataFrame({1: [-1.0], 2: [0.0]})).tolist() == [-np.inf]


@pytest.mark.parametrize("estimator", [tfr.FlowDensity, tfr.FlowRegressor])
def test_rows_of_no_weight_can_be_out_of_bounds(estimator):
    rng = np.random.default_rng(0)
    x, y, weights = rng.exponential(size=[60, 2]), rng.integers(2, size=60), np.ones(60)
    x[0], weights[0] = -1.0, 0.0
    fit = estimator(bounds={0: (0, None)}, **_TINY).fit(x, y, weights)
    same = estimator(bounds={0: (0, None)}, **_TINY).fit(x[1:], y[1:])
    np.testing.assert_allclose(fit.predict(x[1:]), same.predict(x[1:]))
    with pytest.raises(ValueError, match="within the bounds of column 0"):
        fit.fit(x, y)


def test_conditions_with_bounds_and_periods():
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.uniform(0, 360, 400), rng.exponential(size=400)])
    y = np.cos(np.radians(x[:, 0])) + x[:, 1] + 0.1 * rng.normal(size=400)
    regressor = tfr.FlowRegressor(bounds={1: (0, None)}, periods={0: 360}, **_TINY).fit(x, y)
    predictions = regressor.predict([[0, 1], [360, 1], [-360, 1], [180, 1]])
    np.testing.assert_allclose(predictions, [2, 2, 2, 0], atol=0.15)
    np.testing.assert_allclose(predictions[1:3], predictions[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bounds": {"price": (0, None)}}, r"bounds by name \(a, b\) or position .* got 'price'"),
        ({"bounds": {5: (0, None)}}, r"bounds by name \(a, b\) or position .* got 5"),
        ({"bounds": {"a": (2, 1)}}, r"bounds of column a as \(low, high\) .* got \(2, 1\)"),
        ({"bounds": {"a": 0}}, r"bounds of column a as \(low, high\) .* got 0"),
        ({"bounds": {"b": (0, 3)}}, r"bounds of column b, \(0, 3\), got array\(\[4\.\]\)"),
        ({"bounds": {"a": ("x", 1)}}, r"bounds of column a as \(low, high\) .* got \('x', 1\)"),
        ({"bounds": [(0, 1)]}, r"bounds as a dictionary by column, got \[\(0, 1\)\]"),
        ({"periods": {"a": -1}}, "positive period of column a, got -1"),
        ({"periods": {"a": 2}, "bounds": {0: (0, 9)}}, "bounds or a period of column a"),
    ],
)
def test_errors(options, message):
    frame = pd.DataFrame({"a": np.arange(9.0), "b": [0.5, 4, 3, 2, 1, 0.1, 0.2, 0.3, 0.7]})
    with pytest.raises(ValueError, match=message):
        tfr.FlowDensity(**options, **_TINY).fit(frame)
