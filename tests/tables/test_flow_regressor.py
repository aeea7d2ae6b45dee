"""The estimator of p(y | x)."""

import pickle

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import tfp_realnvp as tfr
from tfp_realnvp.tables import stack as table_stack
from tfp_realnvp.tables.simple_densities import StudentT

_TINY = {"num_flows": 2, "num_couplings": 1, "num_filters": 4, "max_steps": 2}


def _branches(number, seed):
    """y = ±(1 + |x|) + 0.2 ε, and its exact log density."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, [number, 1])
    center = 1 + abs(x[:, 0])
    y = rng.choice([-1, 1], number) * center + 0.2 * rng.normal(size=number)
    squares = -(((y[:, np.newaxis] - center[:, np.newaxis] * [-1, 1]) / 0.2) ** 2) / 2
    return x, y, np.logaddexp(*squares.T) - np.log(2 * 0.2 * np.sqrt(2 * np.pi))


def _rows(number, seed=0):
    """Two y that depend on each other and on three x, linearly, in units of their own."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=[number, 3]) * [1.0, 10.0, 0.1]
    errors = rng.normal(size=[number, 2]) @ [[1.0, 0.8], [0.0, 0.6]]
    return x, 100 + 5 * (x @ [[1.0, 0.0], [0.1, -0.1], [0.0, 10.0]] + errors)


@pytest.fixture(scope="module")
def flows():
    """Flows alone, without normal mixtures, which find branches as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_stack, "fit_normal_mixtures", lambda *_: [])
        x, y, _ = _branches(600, seed=0)
        options = {"num_flows": 2, "max_steps": 300, "learning_rate": 5e-3, "noise": 0.05}
        return tfr.FlowRegressor(random_state=0, **options).fit(x, y)


@pytest.mark.parametrize("with_flows", [False, True])
def test_branches(flows, with_flows, monkeypatch):
    regressor = flows
    if not with_flows:
        monkeypatch.setattr(table_stack, "_MIN_ROWS_OF_FLOWS", np.inf)
        x, y, _ = _branches(600, seed=0)
        regressor = tfr.FlowRegressor(random_state=0, **_TINY).fit(x, y)
    x, y, exact = _branches(1_000, seed=1)
    assert regressor.score_samples(x, y).mean() > exact.mean() - (0.35 if with_flows else 0.15)
    # Linear regression with normal errors has 1.66 nats less.
    assert (regressor.flow_gain_[0] > 1) == with_flows


def test_one_distribution_in_all_methods(flows):
    x, _, _ = _branches(4, seed=2)
    axis = np.linspace(-9, 9, 1_801)
    for row in x[:1]:
        rows = np.tile(row, [len(axis), 1])
        density = np.exp(flows.score_samples(rows, axis))
        assert np.trapezoid(density, axis) == pytest.approx(1, abs=5e-3)
        mean = np.trapezoid(density * axis, axis)
        assert flows.predict([row])[0] == pytest.approx(mean, abs=0.04)
        entropy = -np.trapezoid(density * np.log(density), axis)
        assert flows.score_samples([row])[0] == pytest.approx(-entropy, abs=0.1)
        np.testing.assert_allclose(
            np.cumsum(density)[900:1_000:20] * 0.01,
            flows.cdf(rows, axis)[900:1_000:20],
            atol=0.01,
        )
    # A row far out, first among others, out of the range of float32 or not.
    far = flows.cdf([[0.0], [0.0], [0.0], [0.5]], [1e9, -1e60, 1e60, 1.0])
    np.testing.assert_allclose(far[:3], [1, 0, 1], atol=1e-6)
    np.testing.assert_allclose(far[3:], flows.cdf([[0.5]], [1.0]), rtol=1e-5)
    log_probs = flows.score_samples([[0.0]] * 3, [1e10, 1e40, 1e100])
    assert np.isfinite(log_probs).all() and (np.diff(log_probs) < -100).all()
    quantiles = flows.predict_quantiles(x, [0.05, 0.3, 0.95])
    for values, level in zip(quantiles, [0.05, 0.3, 0.95], strict=True):
        np.testing.assert_allclose(flows.cdf(x, values), level, atol=1e-5)
    low, high = flows.predict_interval(x, 0.9)
    np.testing.assert_allclose(quantiles[[0, 2]], [low, high], rtol=1e-5)
    samples = flows.sample(x, 4_000, random_state=0)
    assert samples.shape == (4_000, 4)
    np.testing.assert_allclose(np.mean(samples < quantiles[1], axis=0), 0.3, atol=0.03)


@pytest.mark.usefixtures("no_flows")
def test_trees_give_the_mean_and_the_scale():
    def rows(number, seed):
        rng = np.random.default_rng(seed)
        x = rng.uniform(-1, 1, [number, 4])
        stddev = np.where(x[:, 2] > 0, 0.5, 0.1)
        y = 2 * np.sign(x[:, 0] * x[:, 1]) + stddev * rng.normal(size=number)
        return x, y, stats.norm(0, stddev).entropy()

    x, y, _ = rows(600, 0)
    regressor = tfr.FlowRegressor(random_state=0).fit(x, y)
    x_test, y_test, entropies = rows(2_000, 1)
    trees = HistGradientBoostingRegressor().fit(x, y)
    assert regressor.score(x_test, y_test) > trees.score(x_test, y_test) - 0.01
    log_probs = regressor.score_samples(x_test, y_test)
    assert -entropies.mean() - 0.4 < log_probs.mean() < -entropies.mean()
    assert regressor.score_held_out_ == pytest.approx(log_probs.mean(), abs=0.15)
    low, high = regressor.predict_interval(x_test, 0.9)
    for is_wide in (x_test[:, 2] > 0, x_test[:, 2] < 0):
        covered = ((low < y_test) & (y_test < high))[is_wide]
        assert covered.mean() == pytest.approx(0.9, abs=0.06)
    samples = regressor.sample(x_test[:3], 4_000, random_state=0)
    np.testing.assert_allclose(samples.mean(axis=0), regressor.predict(x_test[:3]), atol=0.05)
    np.testing.assert_allclose(np.mean(samples < low[:3], axis=0), 0.05, atol=0.015)


@pytest.mark.usefixtures("no_flows")
@pytest.mark.parametrize("number", [90, 300])
def test_y_is_nearly_a_linear_function(number):
    """The density is as narrow as the errors, which are a hundredth of the spread of y."""
    slopes, stddev = np.array([5.0, -3.0]), 0.05

    def rows(number, seed):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=[number, 2])
        return x, x @ slopes + stddev * rng.normal(size=number)

    regressor = tfr.FlowRegressor(random_state=0, **_TINY).fit(*rows(number, 0))
    x, y = rows(1_000, 1)
    exact = stats.norm(x @ slopes, stddev).logpdf(y)
    # No density is higher on average than the exact one, up to the error of 1,000 rows.
    assert -0.12 < (regressor.score_samples(x, y) - exact).mean() < 0.03
    low, high = regressor.predict_interval(x)
    assert np.mean((low < y) & (y < high)) == pytest.approx(0.9, abs=0.07)
    np.testing.assert_allclose(regressor.predict(x), x @ slopes, atol=0.2)


@pytest.mark.usefixtures("no_flows")
def test_several_numbers():
    x, y = _rows(600)
    regressor = tfr.FlowRegressor(random_state=0, **_TINY).fit(x, y)
    x_test, y_test = _rows(400, seed=1)
    shifted = (y_test - 100) / 5 - x_test @ [[1.0, 0.0], [0.1, -0.1], [0.0, 10.0]]
    latents = shifted @ np.linalg.inv([[1.0, 0.8], [0.0, 0.6]])
    exact = -(latents**2).sum(axis=1) / 2 - np.log(2 * np.pi) - np.log(25 * 0.6)
    assert abs(regressor.score_samples(x_test, y_test) - exact).mean() < 0.15
    expected = 100 + 5 * x_test @ [[1.0, 0.0], [0.1, -0.1], [0.0, 10.0]]
    np.testing.assert_allclose(regressor.predict(x_test), expected, atol=2)
    samples = regressor.sample(x_test[:1], 4_000, random_state=0)[:, 0]
    np.testing.assert_allclose(np.cov(samples.T), [[25, 20], [20, 25]], atol=4)
    quantiles = regressor.predict_quantiles(x_test[:3], [0.1, 0.9])
    assert quantiles.shape == (2, 3, 2)
    np.testing.assert_allclose(quantiles.mean(axis=0), expected[:3], atol=2)
    np.testing.assert_allclose(quantiles[1] - quantiles[0], 2 * 1.2816 * 5, rtol=0.15)
    with pytest.raises(ValueError, match="single y"):
        regressor.cdf(x_test, y_test)


def test_model_selection_and_frames():
    x, y = _rows(80)
    frame, target = pd.DataFrame(x, columns=list("abc")), pd.Series(y[:, 0], name="y")
    regressor = tfr.FlowRegressor(random_state=0, **_TINY)
    pipeline = make_pipeline(StandardScaler(), regressor)
    predictions = cross_val_predict(pipeline, frame, target, cv=2)
    assert np.corrcoef(predictions, target)[0, 1] > 0.6
    fitted = clone(regressor).fit(frame, target)
    restored = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(restored.predict(frame), fitted.predict(frame))
    # One row alone, as among others.
    np.testing.assert_allclose(fitted.predict(frame[:1]), fitted.predict(frame)[:1])


@pytest.mark.parametrize("kind", ["survey", "five times", "mixed"])
@pytest.mark.usefixtures("no_flows")
def test_copies_of_a_row_do_not_make_it_known(kind):
    x, y = _rows(200)
    x_test, y_test = _rows(2_000, seed=1)
    y, y_test = np.sin(2 * x[:, 0]) + 0.1 * y[:, 0], np.sin(2 * x_test[:, 0]) + 0.1 * y_test[:, 0]
    rng, copies, weights = np.random.default_rng(2), 1, None
    if kind == "five times":
        copies = 5
    else:
        weights = rng.integers(300, 1_501, 200) if kind == "survey" else rng.choice([1, 3, 9], 200)
    regressor = tfr.FlowRegressor(random_state=0)

    def score_and_coverage():
        low, high = regressor.predict_interval(x_test, 0.9)
        coverage = np.mean((low < y_test) & (y_test < high))
        return regressor.score_samples(x_test, y_test).mean(), coverage

    expected, expected_coverage = regressor.fit(x, y) and score_and_coverage()
    regressor.fit(np.repeat(x, copies, axis=0), np.repeat(y, copies, axis=0), weights)
    score, coverage = score_and_coverage()
    assert coverage == pytest.approx(expected_coverage, abs=0.03)
    assert score == pytest.approx(expected, abs=0.2)
    assert regressor.score_held_out_ == pytest.approx(score, abs=0.3)


@pytest.mark.parametrize(("step", "with_flows"), [(1.0, False), (0.5, False), (1.0, True)])
def test_a_y_of_few_values_is_scored_as_rounded(step, with_flows, monkeypatch):
    """Grades: log_prob(grade) is a log probability, for steps of 1/2 divided by the step."""
    modes, stddev = np.array([-1.6, 1.6]), 0.6

    def grades(number, seed):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=[number, 1])
        errors = rng.choice(modes, number) + stddev * rng.normal(size=number)
        return x, step * np.round(5 + x[:, 0] + errors).clip(2, 8)

    if with_flows:
        monkeypatch.setattr(table_stack, "fit_normal_mixtures", lambda *_: [])
    else:
        monkeypatch.setattr(table_stack, "_MIN_ROWS_OF_FLOWS", np.inf)
    # The architecture of the flows above, which is traced already.
    options = {"num_flows": 2, "max_steps": 150, "noise": 0.05, "learning_rate": 0.01}
    regressor = tfr.FlowRegressor(random_state=0, **options).fit(*grades(400, 0))
    assert regressor.flow_gain_[0] > 0.05 or not with_flows
    assert regressor.rounding_widths_ == [step]
    x, y = grades(400, 1)
    log_probs = regressor.score_samples(x, y) + np.log(step)
    assert log_probs.max() <= 0
    values = step * np.arange(-20, 31)
    every = regressor.score_samples(np.tile(x[:50], [51, 1]), np.repeat(values, 50))
    np.testing.assert_allclose(np.exp(every).reshape([51, 50]).sum(axis=0) * step, 1, atol=1e-3)
    ends = np.stack([np.where(y == 2 * step, -np.inf, y / step - 0.5), y / step + 0.5])
    ends[1, y == 8 * step] = np.inf
    normal = stats.norm((5 + x[:, :1] + modes)[np.newaxis], stddev)
    low, high = normal.cdf(ends[..., np.newaxis]).mean(axis=-1)
    exact = np.log(high - low).mean()
    assert exact - 0.2 < log_probs.mean() < exact + 0.05
    assert regressor.score_held_out_ + np.log(step) == pytest.approx(log_probs.mean(), abs=0.15)
    far = regressor.score_samples(x[:1].repeat(3, axis=0), step * np.array([20, 1e3, 1e6]))
    assert np.isfinite(far).all() and (np.diff(far) < -2).all()


@pytest.mark.usefixtures("no_flows")
@pytest.mark.parametrize("number", [90, 400])  # without and with trees
def test_counts(number):
    def counts(number, seed):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=[number, 2])
        rate = np.exp(0.7 + 0.5 * x[:, 0])
        return x, rng.poisson(rate), rate

    x, y, _ = counts(number, 0)
    regressor = tfr.FlowRegressor(bounds={"y": (0, None)}, random_state=0).fit(x, y)
    x_test, y_test, rate = counts(1_000, 1)
    samples = regressor.sample(x_test, 50, random_state=0)
    low, high = regressor.predict_interval(x_test)
    for values in (samples, low, high):
        assert (values == np.rint(values)).all() and values.min() >= 0
    assert np.mean((low <= y_test) & (y_test <= high)) > 0.88
    np.testing.assert_allclose(samples.mean(axis=0).mean(), rate.mean(), rtol=0.1)
    np.testing.assert_allclose(regressor.predict(x_test).mean(), samples.mean(), rtol=0.02)
    # One probability mass function: in scores, samples, the CDF and its inverse.
    axis = np.arange(61)
    rows, values = np.repeat(x_test[:40], 61, axis=0), np.tile(axis, 40)
    probs = np.exp(regressor.score_samples(rows, values)).reshape([40, 61])
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=2e-3)
    np.testing.assert_allclose((samples[:, :40] == 1).mean(), probs[:, 1].mean(), atol=0.03)
    cdf = regressor.cdf(rows, values).reshape([40, 61])
    np.testing.assert_allclose(cdf, probs.cumsum(axis=1), atol=2e-3)
    median = regressor.predict_quantiles(x_test[:40], [0.5])[0]
    np.testing.assert_array_equal(median, (cdf < 0.5).sum(axis=1))
    entropies = -(probs * np.log(probs)).sum(axis=1)
    np.testing.assert_allclose(-regressor.score_samples(x_test[:40]), entropies, atol=0.1)
    assert regressor.score_samples(x[:2], [-1, -5]).tolist() == [-np.inf, -np.inf]
    assert regressor.cdf(x[:4], [-1, -0.5, 0.5, 0]).tolist()[:2] == [0, 0]
    exact = stats.poisson(rate).logpmf(y_test).mean()
    log_prob = regressor.score_samples(x_test, y_test).mean()
    assert exact - 0.15 < log_prob < exact + 0.03
    assert regressor.score_held_out_ == pytest.approx(log_prob, abs=0.15)


@pytest.mark.usefixtures("no_flows")
def test_y_with_bounds():
    rng = np.random.default_rng(0)
    x = rng.normal(size=[600, 1])
    y = np.column_stack([rng.exponential(np.exp(x[:, 0])), rng.normal(size=600)])
    regressor = tfr.FlowRegressor(bounds={"y": [0, None]}, random_state=0).fit(x[:300], y[:300, 0])
    plain = tfr.FlowRegressor(random_state=0).fit(x[:300], y[:300, 0])
    score = regressor.score_samples(x[300:], y[300:, 0]).mean()
    exact = stats.expon(scale=np.exp(x[300:, 0])).logpdf(y[300:, 0]).mean()
    assert max(exact - 0.3, plain.score_samples(x[300:], y[300:, 0]).mean()) < score < exact + 0.1
    assert regressor.score_held_out_ == pytest.approx(score, abs=0.2)
    axis = np.linspace(0, 60, 6_001)
    p = np.exp(regressor.score_samples(np.zeros([6_001, 1]), axis))
    assert np.trapezoid(p, axis) == pytest.approx(1, abs=0.01)
    assert np.trapezoid(p * axis, axis) == pytest.approx(regressor.predict([[0.0]])[0], abs=0.06)
    np.testing.assert_allclose(
        regressor.cdf(np.zeros([4, 1]), [-1, 0.5, 2, 1e9]),
        [0, np.trapezoid(p[:51], axis[:51]), np.trapezoid(p[:201], axis[:201]), 1],
        atol=0.01,
    )
    assert regressor.sample(x, 20, random_state=0).min() >= 0
    assert regressor.predict_quantiles(x, [0.001]).min() >= 0
    # Several numbers.
    regressor = tfr.FlowRegressor(bounds={"y[:, 0]": (0, None)}, random_state=0).fit(x, y)
    samples = regressor.sample(x, 20, random_state=0)
    assert samples[..., 0].min() >= 0 > samples[..., 1].min()
    assert regressor.score_samples(x[:1], [[-1.0, 0.0]]) == -np.inf
    for bounds, message in (
        ({"y": (1, None)}, r"numbers within the bounds of column y, \(1, None\)"),
        ({"y": 0}, r"bounds of column y as \(low, high\)"),
        ({"z": (0, 1)}, "bounds by name"),
    ):
        with pytest.raises(ValueError, match=message):
            tfr.FlowRegressor(bounds=bounds).fit(x, y[:, 0])


@pytest.mark.parametrize("number", [99, 200])  # without and with trees
@pytest.mark.usefixtures("no_flows")
def test_gaps_in_x(number):
    rng = np.random.default_rng(0)
    x = rng.normal(size=[number, 3])
    x[:, 1] += x[:, 0]
    y = 2 * x[:, 1] + x[:, 2] + 0.2 * rng.normal(size=number)
    holes = x.copy()
    holes[rng.random(number) < 0.4, 1] = np.nan
    regressor = tfr.FlowRegressor(random_state=0).fit(holes, y)
    low, high = regressor.predict_interval([[1.0, 1.5, 0.0], [1.0, np.nan, 0.0]])
    mean, rest = (high + low) / 2, (high - low) / 2 / stats.norm.ppf(0.95)
    # The second mean is that of x1 given x0.
    np.testing.assert_allclose(mean, [3, 2], atol=0.6)
    assert 0.15 < rest[0] < 0.6 * rest[1] and 1.4 < rest[1] < 2.6
    assert np.isfinite(regressor.score_samples(holes, y)).all()
    # Gaps that the fit did not see become means given the other cells, as a warning says.
    complete = tfr.FlowRegressor(random_state=0).fit(x, y)
    with pytest.warns(UserWarning, match=r"given the other cells: 1\.") as notes:
        mean = complete.predict([[1.0, np.nan, 0.0], [-1.0, np.nan, 1.0]])
    assert len(notes) == 1 and notes[0].filename == __file__
    np.testing.assert_allclose(mean, [2, -1], atol=0.6)
    holes[0, 0], weights = np.nan, np.append(0.0, np.ones(number - 1))
    with pytest.warns(UserWarning, match=r"given the other cells: 0\."):
        regressor.fit(holes, y, weights).predict(holes[:1])


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_quantiles_far_out(share):
    """Of a mixture of two Student t distributions, beside SciPy, on both sides."""
    x, y, _ = _branches(20, seed=0)
    regressor = tfr.FlowRegressor(random_state=0, **_TINY).fit(x, y)
    starts = [
        StudentT(np.array([m]), np.zeros([1, 1]), np.array([[scale]]), np.log(abs(scale)), 8.0)
        for m, scale in ((1.0, 2.0), (-3.0, -0.5))
    ]
    shares = np.array([1 - share, share])
    regressor._stack = table_stack.TableStack(starts, shares, (0.0, -np.inf, np.inf), None)
    low = 10.0 ** np.array([-1.0, -4, -6, -7, -9, -12])
    levels = np.concatenate([low, [0.5], 1 - low])
    quantiles = regressor.predict_quantiles(x[:2], levels)
    standardized = (quantiles[:, 0] - regressor._columns.center) / regressor._columns.scale
    parts = stats.t(8, [[1.0], [-3.0]], [[0.5], [2.0]])
    is_low = levels <= 0.5
    tails = shares @ np.where(is_low, parts.cdf(standardized), parts.sf(standardized))
    np.testing.assert_allclose(tails, np.where(is_low, levels, 1 - levels), rtol=1e-5)
    if not share:
        exact = stats.t(8, 1.0, 0.5).ppf(levels)
        np.testing.assert_allclose(standardized, exact, rtol=1e-6)
    assert (np.diff(regressor.predict_quantiles(x, np.sort(levels)), axis=0) > 0).all()


@pytest.mark.usefixtures("no_flows")
def test_columns_that_the_fit_did_not_know_do_not_act():
    x, y = _rows(120)
    x[:, 0], x[:, 2] = np.nan, 3.0
    regressor = tfr.FlowRegressor(random_state=0, **_TINY).fit(x, y[:, 0])
    known = x[:5].copy()
    known[:, 0], known[:, 2] = 1e6, -1e6
    np.testing.assert_allclose(regressor.predict(known), regressor.predict(x[:5]))


def test_errors(flows):
    x, y, _ = _branches(5, seed=0)
    for call, message in (
        (lambda: flows.predict_quantiles(x, [0.5, 1.0]), "between 0 and 1"),
        (lambda: flows.predict_interval(x, 90), "probability above 0 and below 1"),
        (lambda: flows.predict_interval(x, 1.0), "probability above 0 and below 1"),
        (lambda: flows.sample(x, 0), "at least 1"),
        (lambda: flows.score_samples(x, np.stack([y, y], axis=1)), r"numbers \[N\]"),
        (lambda: tfr.FlowRegressor().fit(x, list("abcde")), r"numbers as y; .*got dtype\('<U1'\)"),
        (lambda: tfr.FlowRegressor().fit(x, np.array(list("abcde"), object)), "numbers .*got 'a'"),
        (lambda: tfr.FlowRegressor().fit(x, y > 0), r"FlowDensity.*y.astype\(int\)\), got .*bool"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_constant_y_is_its_constant():
    x, _ = _rows(30)
    with pytest.warns(UserWarning, match=r"y \(constant\)"):
        regressor = tfr.FlowRegressor(random_state=0, **_TINY).fit(x, np.full(30, 1.5))
    samples = regressor.sample(x, 20, random_state=0)
    for values in (regressor.predict(x), samples, *regressor.predict_interval(x)):
        assert (values == 1.5).all()
