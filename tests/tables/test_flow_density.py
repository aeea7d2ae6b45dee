"""The estimator of scikit-learn."""

import inspect
import pickle
import random
import re
import sys
import warnings

import keras
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.base import clone
from sklearn.datasets import load_wine, make_moons
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PowerTransformer

import tfp_realnvp as tfr
from tfp_realnvp.internal import progress
from tfp_realnvp.tables import options, simple_densities, table_flow

_TINY = {"num_flows": 2, "num_couplings": 1, "num_filters": 4, "max_steps": 2}


def _rows(number, seed=0):
    """Correlated rows of two columns of different units, rounded to 0.01."""
    rng = np.random.default_rng(seed)
    first = rng.normal(5.0, 2.0, number)
    return np.round(np.stack([first, 30 * first + 10 * rng.normal(size=number)], axis=1), 2)


@pytest.fixture(scope="module")
def density():
    return tfr.FlowDensity(random_state=0, **_TINY).fit(_rows(60))


@pytest.fixture(scope="module")
def classifier():
    x, y = load_wine(return_X_y=True)
    y = np.array(["barolo", "grignolino", "barbera"])[y]
    x_train, x_test, y_train, y_test = train_test_split(x, y, random_state=0)
    classifier = tfr.FlowDensity(random_state=0, **_TINY).fit(x_train, y_train)
    return classifier, x_test, y_test


# Interface.


def test_model_selection():
    rows, labels = _rows(60), np.arange(60) % 2
    density = tfr.FlowDensity(random_state=0, **_TINY)
    search = GridSearchCV(density, {"degrees_of_freedom": [0.1, 8.0]}, cv=2).fit(rows)
    # Most of the mass of a distribution with so few degrees of freedom is far out.
    assert search.best_params_ == {"degrees_of_freedom": 8.0}
    assert search.best_score_ == pytest.approx(cross_val_score(density, rows, cv=2).mean())
    rows[:, 0] += 50 * labels
    pipeline = make_pipeline(PowerTransformer(), density)
    assert cross_val_score(pipeline, rows, labels, cv=2, scoring="roc_auc").mean() == 1


def test_random_states():
    rows = _rows(60)
    state = random.getstate(), np.random.get_state()[1].tolist()
    density = tfr.FlowDensity(random_state=3, **_TINY).fit(rows)
    # Another fit in between, of the same architecture.
    tfr.FlowDensity(random_state=4, **_TINY).fit(rows + 1)
    log_probs = clone(density).fit(rows).score_samples(rows)
    np.testing.assert_allclose(log_probs, density.score_samples(rows), rtol=1e-7)
    other = clone(density).set_params(random_state=4).fit(rows).score_samples(rows)
    assert abs(other - log_probs).max() > 1e-3
    samples = [density.sample(5, random_state=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(samples[0], samples[1])
    assert abs(samples[0] - samples[2]).min() > 0
    assert state == (random.getstate(), np.random.get_state()[1].tolist())


def test_a_training_that_diverges_ends_no_other(monkeypatch):
    monkeypatch.setattr(simple_densities, "_NUM_COMPONENTS", (1,))
    rows = make_moons(200, noise=0.1, random_state=0)[0]
    density = tfr.FlowDensity(random_state=0, **{**_TINY, "max_steps": 100, "noise": 0.1})
    expected = clone(density).set_params(learning_rate=0.02).fit(rows)
    assert (expected.n_steps_ > 0).all()
    message = r"learning_rate=1e\+06 its training diverged at step \d+\. A smaller"
    with pytest.warns(ConvergenceWarning, match=message):
        diverged = clone(density).set_params(learning_rate=1e6).fit(rows)
    assert diverged.n_steps_.tolist() == [0]
    assert diverged.score_held_out_ == diverged.score_start_
    after = clone(expected).fit(rows)
    assert after.n_steps_.tolist() == expected.n_steps_.tolist()
    np.testing.assert_array_equal(after.score_samples(rows), expected.score_samples(rows))


@pytest.mark.eager
def test_the_global_policy_of_keras_does_not_matter():
    rows = make_moons(200, noise=0.1, random_state=0)[0]
    leads = []
    for policy in ("float32", "mixed_bfloat16"):
        table_flow._functions.cache_clear()
        keras.config.set_dtype_policy(policy)
        try:
            density = tfr.FlowDensity(random_state=0, **{**_TINY, "max_steps": 5}).fit(rows)
        finally:
            keras.config.set_dtype_policy("float32")
        leads.append(density.history_[0]["lead"])
    assert leads[0] == leads[1] != [0.0]


@pytest.mark.parametrize("name", ["sklearn.base", "scipy.special", "pandas"])
def test_packages_are_optional(monkeypatch, name):
    for module in [each for each in sys.modules if each.startswith("tfp_realnvp.tables")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"needs .*, got: .*{name}.* Call .*\[tables\]"):
        _ = tfr.FlowDensity


# The density.


def test_the_integral_is_one(density):
    # Along the axes of the covariance, since the density is narrow.
    rows = _rows(60)
    cholesky = np.linalg.cholesky(np.cov(rows.T))
    along = np.linspace(-12, 12, 241)
    grid = np.stack(np.meshgrid(along, along), axis=-1).reshape(-1, 2) @ cholesky.T
    cell = (along[1] - along[0]) ** 2 * np.linalg.det(cholesky)
    log_probs = density.score_samples(rows.mean(axis=0) + grid)
    np.testing.assert_allclose(np.exp(log_probs).sum() * cell, 1, atol=0.02)


def test_samples_have_the_moments_of_the_rows(density):
    rows, samples = _rows(60), density.sample(4_000, random_state=0)
    error = 5 * rows.std(axis=0) / np.sqrt(60)
    assert (abs(samples.mean(axis=0) - rows.mean(axis=0)) < error).all()
    np.testing.assert_allclose(np.corrcoef(samples.T), np.corrcoef(rows.T), atol=0.05)
    assert abs(density.score(samples) - density.score(rows)) < 0.7


def test_flows_find_more_than_moments(monkeypatch, capsys):
    # Without mixtures of normal distributions, which also find moons.
    monkeypatch.setattr(simple_densities, "_NUM_COMPONENTS", (1,))
    train, test = np.split(make_moons(600, noise=0.1, random_state=0)[0], [400])
    options = {"num_flows": 2, "num_couplings": 3, "max_steps": 200, "random_state": 0}
    density = tfr.FlowDensity(noise=0.1, learning_rate=5e-3, verbose=1, **options).fit(train)
    gain, error = density.flow_gain_
    assert gain > 0.2 and gain > 5 * error
    assert density.score_held_out_ - density.score_start_ == pytest.approx(gain)
    assert density.score(test) == pytest.approx(density.score_held_out_, abs=0.2)
    # Samples of flows too.
    assert density.score(density.sample(2_000, random_state=0)) > density.score_start_
    assert (density.n_steps_ > 100).all() and (density.noise_ == 0.1).all()
    assert density.history_[0]["step"][-1] <= 200
    out = capsys.readouterr().out
    # Tracing takes most of the time of the first steps.
    assert "flow 1 of 2, step 50 of 200: " in out and "flow 2 of 2, step 50 of 200, at most " in out
    data = pickle.dumps(density)
    assert b"tensorflow" not in data and b"keras" not in data
    log_probs = pickle.loads(data).score_samples(test)
    np.testing.assert_array_equal(log_probs, density.score_samples(test))
    # Another fit of the same shape makes no new graph.
    num_traced = table_flow._functions.cache_info().misses
    again = clone(density).set_params(verbose=0).fit(train[::-1])
    assert again.score(test) == pytest.approx(density.score(test), abs=1e-6)
    assert table_flow._functions.cache_info().misses == num_traced


def test_many_rows_have_one_flow_and_few_lines(monkeypatch, capsys):
    monkeypatch.setattr(options, "_MIN_MANY_ROWS", 500)
    monkeypatch.setattr(options, "_DEFAULTS", {**options._DEFAULTS, "max_steps": (1, 250)})
    monkeypatch.setattr(simple_densities, "_MAX_ROWS", 200)
    monkeypatch.setattr(simple_densities, "_NUM_COMPONENTS", (1, 4))
    # A busy machine may take longer than the 5 s.
    monkeypatch.setattr(progress, "_FIRST_SECONDS", 1_000.0)
    train, test = np.split(make_moons(1_000, noise=0.1, random_state=0)[0], 2)
    density = tfr.FlowDensity(num_couplings=4, random_state=0).fit(train)
    assert len(density.history_) == 1 and density.history_[0]["step"][-1] > 1
    # Fifty rows are held out.
    assert density.score(test) == pytest.approx(density.score_held_out_, abs=0.3)
    assert not capsys.readouterr().out
    monkeypatch.setattr(progress, "_FIRST_SECONDS", 0.0)
    clone(density).fit(train[:400])
    assert re.match(r"0 s: mixture with 1 full covariances: -\d", capsys.readouterr().out)


def test_flows_that_gain_nothing_are_left_out():
    rows = np.random.default_rng(0).normal(size=[200, 2])
    density = tfr.FlowDensity(random_state=0, **_TINY).fit(rows)
    assert len(density.history_) == 1 and density.flow_gain_ == (0, 0)
    # No flow is tried with few rows.
    assert not density.fit(rows[:100]).history_


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_rounding(dtype):
    rng = np.random.default_rng(0)
    halves, ages = rng.integers(9, size=60) / 2, rng.integers(12, size=60)
    ages = np.append(ages[1:], 4.5)  # one half does not make halves of the others
    # The last column is rounded, and so finely that it does not matter.
    columns = halves, halves / 10, ages, ages / 100, rng.normal(size=60), 100 * rng.permutation(60)
    rows, widths = np.stack(columns, axis=1).astype(dtype), [0.5, 0.05, 1, 0.01, 0, 0]
    density = tfr.FlowDensity(**_TINY)
    # float32 comes as float64, too, in a frame with columns of both.
    for table in (rows, rows.astype(np.float64)):
        np.testing.assert_allclose(density.fit(table).rounding_widths_, widths)
    assert not density.set_params(dequantize=False).fit(rows).rounding_widths_.any()


@pytest.mark.parametrize("kind", ["rain", "share"])
@pytest.mark.usefixtures("no_flows")
def test_values_that_many_rows_have_do_not_tell_the_rounding(kind):
    rng = np.random.default_rng(0)
    u = rng.random(1_200)
    if kind == "rain":  # most hours are without, others have some hundredths of an inch
        column, width = np.where(u < 0.8, 0.0, 0.01 * rng.integers(1, 12, 1_200)), 0.01
    else:  # of many rows none or all
        column, width = np.select([u < 0.45, u < 0.75], [0.0, 1.0], rng.beta(2, 2, 1_200)), 0.0
    rows = np.stack([column, rng.normal(size=1_200) + 3 * column / column.max()], axis=1)
    train, test = np.split(rows, 2)
    density = tfr.FlowDensity(random_state=0, **_TINY).fit(train)
    np.testing.assert_allclose(density.rounding_widths_, [width, 0])
    # With the width of whole numbers the column would be smooth, as if no number were exact.
    mixture = GaussianMixture(8, random_state=0).fit(train)
    assert density.score(test) > mixture.score(test) - 0.1


@pytest.mark.filterwarnings("ignore:FlowDensity. (some columns|the results):UserWarning")
def test_a_constant_column_is_its_constant():
    rows = np.insert(_rows(60), [1, 1, 1], [2_020, 1e-3, 1 / 3], axis=1)
    density = tfr.FlowDensity(random_state=0, **_TINY).fit(rows, None, np.linspace(0.1, 2, 60))
    samples = density.sample(500, random_state=0)
    holes = np.full([20, 5], np.nan)
    holes[:, 0] = rows[:20, 0]
    holes[10:, 1] = 2_021  # what is known stays
    filled = density.impute(holes, random_state=0)
    for table in (samples, filled[:10]):
        assert (table[:, 1:4] == [2_020, 1e-3, 1 / 3]).all()
        assert (np.ptp(table[:, [0, 4]], axis=0) > 5).all()
    assert (filled[10:, 1] == 2_021).all()
    assert np.isfinite(density.score_samples(holes)).all()
    assert density.score(rows + np.eye(5)[1]) < density.score(rows) - 2


@pytest.mark.usefixtures("no_flows")
def test_columns_far_from_zero():
    # Times in seconds, where float32 has steps of 128.
    rng, center = np.random.default_rng(0), 1.7e9
    train, test = center + rng.normal(size=[2, 500, 2]) * [1.0, 5.0]
    density = tfr.FlowDensity(random_state=0, **_TINY).fit(train)
    exact = stats.norm(center, [1.0, 5.0]).logpdf(test).sum(axis=1).mean()
    assert density.score(test) == pytest.approx(exact, abs=0.05)
    samples = density.sample(2_000, random_state=0)
    np.testing.assert_allclose(samples.std(axis=0), [1.0, 5.0], rtol=0.1)


def test_numbers_that_are_too_large_have_no_density(density, classifier):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_probs = density.score_samples([[1e300, 0.0], [1e300, -1e300], [5.0, 150.0]])
        assert density.score_samples([[np.nan, 1e300]]) == -np.inf
        # Nothing is known of the class.
        classifier, x, _ = classifier
        proba = classifier.predict_proba(1e300 * x[:1])
    assert log_probs[:2].tolist() == [-np.inf, -np.inf] and np.isfinite(log_probs[2])
    np.testing.assert_allclose(proba, [classifier.class_prior_])


@pytest.mark.usefixtures("no_flows")
def test_a_column_of_few_well_known_values():
    rng = np.random.default_rng(0)
    months, shift = rng.integers(5, 10, size=400), np.array([0.1, 0.0])
    rows = np.stack([months, rng.normal(3 * months)], axis=1)
    density = tfr.FlowDensity(random_state=0, **_TINY).fit(rows)
    # Almost all of the mass is at these values, and almost none between.
    assert density.score(rows) > density.score(rows + shift) + 2
    # Values that have been seen once are smoothed.
    rows[:, 0] = 10 * rows[:, 0] + np.arange(400) % 10
    smooth = clone(density).fit(rows)
    assert smooth.score(rows) < smooth.score(rows + shift) + 0.5


def test_a_row_against_an_exact_rule_is_not_impossible():
    rng = np.random.default_rng(0)
    ages, years = rng.normal(40, 10, size=100), rng.normal(12, 2, size=100)
    rows = np.stack([ages, years, ages - years - 6], axis=1)
    density = tfr.FlowDensity(random_state=0, **_TINY).fit(rows)
    other = rows[:1] + np.array([0.0, 0.0, 10.0])
    usual, unusual = density.score(rows), density.score(other)
    assert usual - 100 < unusual < usual - 5


@pytest.mark.full
@pytest.mark.usefixtures("no_flows")
def test_heavy_tails_cost_little_with_many_rows():
    rng = np.random.default_rng(0)
    rows = np.append(rng.normal(-10, 0.1, 6_000), rng.normal(10, 0.1, 6_000))[:, np.newaxis]
    train, test = rows[::2], rows[1::2]
    exact = stats.norm([-10, 10], 0.1).logpdf(test)
    exact = np.logaddexp(*exact.T).mean() - np.log(2)
    density = tfr.FlowDensity(random_state=0, **_TINY).fit(train)
    # A weight of 0.01 alone would cost 0.01.
    assert exact - 0.005 < density.score(test) < exact + 0.002
    assert density.score(np.zeros([1, 1])) > -10


def test_numbers_whose_squares_are_out_of_range():
    rows, tiny = _rows(20), np.array([1, 1e-200])
    density = tfr.FlowDensity(random_state=0, **_TINY).fit(rows)
    expected = density.score(rows) + 200 * np.log(10)
    assert density.fit(rows * tiny).score(rows * tiny) == pytest.approx(expected, abs=1)
    with pytest.raises(ValueError, match=r"absolute values below 1e\+150, got "):
        density.fit(rows / tiny)


# Weights.


def test_weights_of_scores_and_classes():
    rows, labels = _rows(40), np.repeat(["a", "b"], 20)
    # Not the same share of the weights as of the rows.
    weights = np.random.default_rng(1).integers(4, size=40) * np.where(labels == "a", 2, 1)
    density = tfr.FlowDensity(random_state=0, **_TINY).fit(rows, labels, weights)
    copies = np.repeat(np.arange(40), weights)
    expected = density.score(rows[copies], labels[copies])
    assert density.score(rows, labels, weights) == pytest.approx(expected)
    frequencies = np.bincount(labels == "b", weights) / weights.sum()
    np.testing.assert_allclose(density.class_prior_, frequencies)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (-np.ones(20), r"nonnegative numbers, one for each row, .* got array\(\[-1\."),
        ([*np.ones(19), np.nan], "got array(?s:.*)nan"),
        (np.zeros(20), r"not all of them zero, got array\(\[0\."),
        (np.ones(19), r"of 20 nonnegative .*, got \(19,\)"),
    ],
)
def test_errors_of_weights(density, weights, message):
    with pytest.raises(ValueError, match=message):
        tfr.FlowDensity(**_TINY).fit(_rows(20), sample_weight=weights)
    with pytest.raises(ValueError, match=message):
        density.score(_rows(20), sample_weight=weights)


# Frames.


@pytest.mark.parametrize("columns", [["width", "height"], [7, 8]])
def test_frames(columns):
    frame = pd.DataFrame(_rows(30), columns=columns)
    density = tfr.FlowDensity(random_state=0, **_TINY).fit(frame)
    samples = density.sample(3, random_state=0)
    assert isinstance(samples, pd.DataFrame) and list(samples) == columns
    assert np.isfinite(density.score(samples))
    frame.loc[3, columns[1]] = np.nan
    known = density.fit(frame).score_samples(frame)
    assert np.isfinite(known).all() and known[3] > density.score(frame)
    frame.loc[:14, columns[1]] = np.nan
    expected = r"known cell in each column and class, got .*'(height|8)'"
    with pytest.raises(ValueError, match=expected):
        density.fit(frame, np.repeat(["low", "high"], 15))
    frame[columns[1]] = np.nan
    with pytest.raises(ValueError, match=expected):
        density.fit(frame)
    frame[columns[0]] = np.nan
    with pytest.raises(ValueError, match="expected rows with known cells, got"):
        density.fit(frame)


def test_samples_have_the_dtypes_of_frames():
    numbers = ["float64", "float32", "Float32", "int64", "uint8", "Int64"]
    values = np.random.default_rng(0).uniform(0, 3, size=[60, 8])
    values[:, 3:6] = np.floor(values[:, 3:6])
    frame = pd.DataFrame(values, columns=[*numbers, "bool", "boolean"])
    frame[["bool", "boolean"]] = frame[["bool", "boolean"]] > 1
    frame = frame.astype({name: name for name in frame})
    density = tfr.FlowDensity(random_state=0, **_TINY).fit(frame)
    samples = density.sample(1_000, random_state=0)
    pd.testing.assert_series_equal(samples.dtypes, frame.dtypes)
    # The density is wider than the rows. Samples below 0 become 0 in a column of uint8.
    assert samples["int64"].min() < 0 == samples["uint8"].min() and samples["uint8"].max() < 20
    assert np.isfinite(density.score(samples))
    samples, frame = samples.astype(float), frame.astype(float)
    assert (abs(samples.mean() - frame.mean()) < 0.4 * frame.std()).all()
    samples = density.fit(frame).sample(20, random_state=0)
    assert (samples["int64"] % 1 > 0).any()
    assert isinstance(density.fit(frame.to_numpy()).sample(2), np.ndarray)


@pytest.mark.usefixtures("no_flows", "few_components")
def test_integers_of_64_bits_do_not_wrap():
    rng = np.random.default_rng(0)
    high = rng.integers(2**62, 2**63 - 1, [2, 200])
    unsigned = high[1].astype("uint64") * np.uint64(2)
    frame = pd.DataFrame(
        {"int64": high[0], "uint64": unsigned, "Int64": pd.array(-high[0], "Int64")}
    )
    samples = tfr.FlowDensity(random_state=0, **_TINY).fit(frame).sample(1_000, random_state=0)
    pd.testing.assert_series_equal(samples.dtypes, frame.dtypes)
    assert samples["int64"].min() > 0 > samples["Int64"].max()
    assert samples["uint64"].min() > 2**61


@pytest.mark.parametrize(("kind", "dequantize"), [("frame", True), ("array", False)])
def test_columns_of_few_values_are_named(kind, dequantize):
    rng = np.random.default_rng(0)
    few, many = rng.integers(5, size=60), rng.integers(5_000, size=60)
    frame = pd.DataFrame({"few": few, "many": many, "half": few[::-1] / 2 + (many > 2_500)})
    frame = frame if kind == "frame" else frame.to_numpy(float)
    names = "few, half" if kind == "frame" else "0, 2"
    density = tfr.FlowDensity(dequantize=dequantize, random_state=0, **_TINY)
    message = rf"take few values: {names}\. score_samples is the height.* not their probability"
    with pytest.warns(UserWarning, match=message) as notes:
        density.fit(frame)
    assert len(notes) == 1 and notes[0].filename == __file__


def test_columns_that_are_no_numbers_are_refused():
    density = tfr.FlowDensity(random_state=0, categorical_features=None, **_TINY)
    frame = pd.DataFrame(_rows(60), columns=["width", "height"])
    frame["kind"] = np.repeat(["a", "b"], 30)
    frame["code"] = pd.Categorical.from_codes(np.arange(60) % 2, [10, 20])
    frame["day"] = pd.Timestamp("2024-02-03") + pd.to_timedelta(np.arange(60), "D")
    message = (
        r"got kind \((str|object)\), code \(category\), day \(datetime.*\)\. For categories, leave "
        r"categorical_features at 'from_dtype'\. Times in seconds are "
        r"\(X\['day'\] - X\['day'\]\.min\(\)\) / np"
    )
    with pytest.raises(ValueError, match=message):
        density.fit(frame)
    frame = pd.DataFrame({"number": pd.array([1, 2, None], "Int64"), "other": [1.0, 2.0, 3.0]})
    assert np.isfinite(density.fit(frame).score(frame))


@pytest.mark.parametrize("dtype", [object, str])
def test_numbers_that_are_no_numbers_to_pandas(dtype):
    frame = pd.DataFrame(_rows(60), columns=["width", "height"]).astype({"height": dtype})
    density = tfr.FlowDensity(random_state=0, **_TINY)
    with pytest.raises(ValueError, match=r"got height \((str|object)\)\. For numbers ") as error:
        density.fit(frame)
    (call,) = re.findall(r"call (X.*\))\.$", str(error.value))
    assert np.isfinite(density.fit(eval(call, {"X": frame, "pd": pd})).score(_rows(60)))


@pytest.mark.parametrize("form", ["list", "object array"])
@pytest.mark.parametrize("estimator", [tfr.FlowDensity, tfr.FlowRegressor])
@pytest.mark.usefixtures("no_flows")
def test_strings_in_arrays_name_the_option(form, estimator):
    rows = np.column_stack([_rows(60).astype(object), np.tile(["a", "b", "c"], 20)])
    rows = rows.tolist() if form == "list" else rows
    fitted = estimator(random_state=0, **_TINY)
    message = (
        r"expected numbers, got strings in columns \[2\]\. For categories pass a DataFrame, or"
    )
    with pytest.raises(ValueError, match=message) as error:
        fitted.fit(rows, np.arange(60) % 2)
    (call,) = re.findall(rf"call {estimator.__name__}\((.*)\)\.$", str(error.value))
    fitted.set_params(**eval(f"dict({call})")).fit(rows, np.arange(60) % 2)
    assert fitted.predict(rows).shape == (60,)


def test_strings_of_many_values_name_the_call():
    frame = pd.DataFrame(_rows(300), columns=["width", "height"])
    frame["day"] = pd.date_range("2024-02-03", periods=300).astype(str)
    density = tfr.FlowDensity(random_state=0, **_TINY)
    message = r"300 in column day\. For dates call (X.*), for identifiers (X.*)\.$"
    with pytest.raises(ValueError, match=message) as error:
        density.fit(frame)
    names = {"X": frame, "pd": pd}
    calls = re.search(message, str(error.value)).groups()
    with_days, without_days = (eval(call, names) for call in calls)
    assert np.ptp(with_days["day"]) == 299 and list(without_days) == ["width", "height"]
    assert np.isfinite(density.fit(with_days).score(with_days))


def test_masked_cells_are_missing():
    rows = np.ma.masked_greater(_rows(60).astype(np.float32), 200)
    density = tfr.FlowDensity(random_state=0, **_TINY)
    holes = rows.filled(np.nan)
    assert density.fit(rows).score(holes) == density.fit(holes).score(rows)
    filled = density.impute(rows, random_state=0)
    assert (filled[rows.mask] != rows.data[rows.mask]).all()
    np.testing.assert_array_equal(filled[~rows.mask], rows.data[~rows.mask])


def test_redundant_columns_are_noted_once():
    rows = _rows(30)
    frame = pd.DataFrame({"a": rows[:, 0], "b": rows[:, 1], "c": rows[:, 0], "d": 1.5})
    density = tfr.FlowDensity(random_state=0, **_TINY)
    with pytest.warns(UserWarning, match=r"information: c \(equals a\), d \(constant\)\.") as notes:
        density.fit(frame)
    assert len(notes) == 1
    assert density.score_samples(frame).max() < 20


# Classes.


def test_bayes_rule(classifier):
    classifier, x, y = classifier
    assert classifier.classes_.tolist() == ["barbera", "barolo", "grignolino"]
    proba, log_prob = classifier.predict_proba(x), classifier.score_samples(x)
    # p(x | y) of a class alone.
    joint = np.log(proba) + log_prob[:, np.newaxis]
    index = np.searchsorted(classifier.classes_, y)
    expected = (joint - np.log(classifier.class_prior_))[np.arange(len(y)), index].mean()
    assert classifier.score(x, y) == pytest.approx(expected)
    assert (classifier.predict(x) == y).mean() > 0.9
    samples = classifier.sample(100, y="barolo", random_state=0)
    assert (classifier.predict(samples) == "barolo").mean() > 0.9
    shares = (classifier.predict(classifier.sample(500, random_state=0)) == "barolo").mean()
    assert abs(shares - classifier.class_prior_[1]) < 0.1


def test_a_class_of_one_row():
    rows, labels = _rows(20), np.array(["many"] * 19 + ["one"])
    rows[-1] = 20, 100
    classifier = tfr.FlowDensity(random_state=0, **_TINY).fit(rows, labels)
    assert classifier.predict(rows).tolist() == labels.tolist()
    # A label of weight zero is no class.
    assert classifier.fit(rows, labels, labels == "many").classes_.tolist() == ["many"]


@pytest.mark.filterwarnings("ignore:The number of unique classes")
def test_errors(density, classifier):
    with pytest.raises(ValueError, match=r"call fit\(X, y\) with labels"):
        density.predict(_rows(2))
    classifier, x, y = classifier
    with pytest.raises(ValueError, match=r"one of the classes \['barbera', .*, got 'merlot'"):
        classifier.sample(1, y="merlot")
    with pytest.raises(ValueError, match=r"one of the classes .*, got 'merlot'"):
        classifier.score(x, np.where(y == "barolo", "merlot", y))
    # After a fit without labels there are no classes.
    refitted = clone(classifier).fit(_rows(20), np.arange(20) % 2).fit(_rows(20))
    assert not hasattr(refitted, "classes_")
    # Measurements are no classes, and -1 is one only beside 1.
    continuous = np.random.default_rng(0).integers(1_000, size=60)
    for y in (continuous, continuous.astype(float)):
        with pytest.raises(ValueError, match=r"got a continuous y: \d+ numbers in 60 rows"):
            clone(classifier).fit(_rows(60), y)
    for y in (np.arange(60) % 3 - 1, np.arange(60) % 2 - 1.0, np.full(60, -1)):
        with pytest.raises(ValueError, match=r'-1 among other numbers, .*"unknown" for a Class'):
            clone(classifier).fit(_rows(60), y)
    for missing in (None, pd.NA, np.nan):
        y = pd.Series(["a", "b", missing] * 20, dtype=object)
        with pytest.raises(ValueError, match=r"a label in each row, got 20 rows with NaN"):
            clone(classifier).fit(_rows(60), y)
    opposites = clone(classifier).fit(_rows(60), np.arange(60) % 2 * 2 - 1)
    assert opposites.classes_.tolist() == [-1, 1]


@pytest.mark.parametrize("estimator", [tfr.FlowDensity, tfr.FlowRegressor])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("transformer", "nosuch", r"expected a transformer, one of \('affine', .* got 'nosuch'"),
        ("num_flows", -1, "num_flows of at least 0, got -1"),
        ("max_steps", -1, "max_steps of at least 0, got -1"),
        ("noise", -1, "noise of at least 0, or None, got -1"),
        ("learning_rate", 0, "positive learning_rate, got 0"),
        ("num_couplings", 0, "num_couplings of at least 1, got 0"),
        ("num_blocks", -1, "num_blocks of at least 0, got -1"),
        ("num_filters", 0, "num_filters of at least 1, got 0"),
        ("verbose", "yes", "expected verbose of 'auto', 0 or 1, got 'yes'"),
    ],
)
def test_options_of_flows_are_checked_where_few_rows_have_none(estimator, name, value, message):
    fitted = estimator(random_state=0, **_TINY).fit(_rows(20), np.arange(20) % 2)
    expected = dict(vars(fitted.set_params(**{name: value})))
    with pytest.raises((ValueError, TypeError), match=message):
        fitted.fit(_rows(30), np.arange(30) % 2)
    assert vars(fitted) == expected


@pytest.mark.parametrize("estimator", [tfr.FlowDensity, tfr.FlowRegressor])
def test_an_unknown_argument_names_those_that_exist(estimator):
    message = f"{estimator.__name__} got .*'num_flow', did you mean 'num_flows'.*verbose"
    with pytest.raises(TypeError, match=message):
        estimator(num_flow=3)
    assert list(inspect.signature(estimator).parameters)[:2] == ["num_flows", "num_couplings"]
