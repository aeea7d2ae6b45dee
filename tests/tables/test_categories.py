"""Columns of categories."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

import tfp_realnvp as tfr

_TINY = {"num_flows": 2, "num_couplings": 1, "num_filters": 4, "max_steps": 2, "random_state": 0}

pytestmark = [pytest.mark.usefixtures("no_flows"), pytest.mark.filterwarnings("ignore:FlowDens")]


def _frame(number, seed=0):
    """Sizes that depend on kind and sex; of the third kind there are few rows."""
    rng = np.random.default_rng(seed)
    kind, is_large = rng.choice(3, number, p=[0.5, 0.47, 0.03]), rng.random(number) < 0.5
    means = np.array([[0.0, 3.0], [6.0, 1.0], [9.0, 9.0]])[kind] + is_large[:, np.newaxis]
    lengths, widths = (means + 0.5 * rng.normal(size=[number, 2])).T
    frame = pd.DataFrame({"kind": np.array(["a", "b", "c"])[kind], "length": lengths})
    frame["is_large"], frame["width"] = is_large, widths
    frame["code"] = pd.Categorical.from_codes(kind, [30, 10, 20, 40])
    return frame


@pytest.fixture(scope="module")
def density():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tfp_realnvp.tables.stack._MIN_ROWS_OF_FLOWS", np.inf)
        return tfr.FlowDensity(**_TINY).fit(_frame(400))


def test_the_density_of_categories_and_numbers(density):
    frame = _frame(400)
    test = _frame(400, seed=1)
    numbers = ["length", "width"]
    means = np.array([[0.0, 3.0], [6.0, 1.0], [9.0, 9.0]])[test["code"].cat.codes]
    errors = (test[numbers] - means - test[["is_large"]].to_numpy()).to_numpy() / 0.5
    exact = -(errors**2).sum(axis=1) / 2 - np.log(2 * np.pi * 0.25)
    exact += np.log(np.array([0.5, 0.47, 0.03])[test["code"].cat.codes] * 0.5)
    assert density.score(test) == pytest.approx(exact.mean(), abs=0.2)
    assert density.score_held_out_ == pytest.approx(exact.mean(), abs=0.3)
    # One row, and an array.
    log_probs = density.score_samples(test)
    np.testing.assert_allclose(density.score_samples(test[7:8]), log_probs[7:8])
    samples = density.sample(1_000, random_state=0)
    pd.testing.assert_series_equal(samples.dtypes, frame.dtypes)
    shares = pd.crosstab(samples["kind"], samples["code"].astype(int), normalize=True)
    expected = frame["kind"].value_counts(normalize=True)[["a", "b"]]
    np.testing.assert_allclose(np.diag(shares.loc[["a", "b"], [30, 10]]), expected, atol=0.06)
    assert density.rounding_widths_.shape == (5,)


def test_missing_categories(density):
    rows = _frame(60, seed=2)
    holes = rows.assign(kind=None, code=pd.Categorical([None] * 60, rows["code"].cat.categories))
    filled = density.impute(holes, random_state=0)
    pd.testing.assert_series_equal(filled.dtypes, rows.dtypes)
    assert (filled["kind"] == rows["kind"]).mean() > 0.9
    codes = [30, 10, 20, 40]
    every = [
        density.score_samples(rows.assign(kind=kind, code=pd.Categorical([code] * 60, codes)))
        for kind, code in itertools.product("abc", codes)
    ]
    assert np.isfinite(every).all()  # also of 40, which no row has
    exact = np.logaddexp.reduce(every)
    np.testing.assert_allclose(density.score_samples(holes), exact, atol=0.3)
    holes = holes.astype({"is_large": object})
    holes.loc[:9, ["length", "is_large"]] = None
    samples = density.impute(holes, 3, random_state=0)
    assert samples.shape == (3, 60, 5) and set(samples[..., 2].ravel()) == {True, False}


def test_categories_with_gaps_in_the_fit():
    # Long rows miss their kind: 29% of the known ones are "b", and 55% of all.
    rng = np.random.default_rng(0)
    kind, noise = rng.choice(["a", "b"], 400), rng.normal(size=400)
    frame = pd.DataFrame({"kind": kind, "length": 4.0 * (kind == "b") + noise})
    holes = frame.assign(kind=frame["kind"].mask((frame["length"] > 2) & (rng.random(400) < 2 / 3)))
    holes.loc[::7, "length"] = np.nan
    density = tfr.FlowDensity(random_state=0).fit(holes)
    assert (density.impute(holes, random_state=0)["kind"] == frame["kind"])[1:7].all()
    samples = density.sample(2_000, random_state=0)
    assert (samples["kind"] == "b").mean() == pytest.approx((kind == "b").mean(), abs=0.1)
    means = samples.groupby("kind")["length"].mean()
    np.testing.assert_allclose(means[["a", "b"]], [0, 4], atol=0.4)
    regressor = tfr.FlowRegressor(random_state=0).fit(holes[["kind"]], frame["length"])
    means = regressor.predict(pd.DataFrame({"kind": ["a", "b", None]}))
    np.testing.assert_allclose(means, [0, 4, 4], atol=0.5)


def test_held_out_categories_are_not_drawn_from_what_holds_them():
    # Categories that nothing tells, nor the numbers: draws that learned of them would.
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"length": rng.normal(size=60), "width": rng.normal(size=60)})
    frame["kind"] = pd.Series(rng.choice(list("abcdefgh"), 60)).mask(rng.random(60) < 0.6)
    scores, held_out = [], []
    for seed in range(3):
        density = tfr.FlowDensity(random_state=seed).fit(frame)
        kind = rng.choice(list("abcdefgh"), 2_000)
        test = pd.DataFrame(rng.normal(size=[2_000, 2]), columns=["length", "width"])
        scores.append(density.score(test.assign(kind=kind)))
        held_out.append(density.score_held_out_)
    assert np.mean(held_out) < np.mean(scores) + 0.25


@pytest.mark.usefixtures("few_components")
def test_categories_by_a_mask_and_masked_cells():
    frame = _frame(100)[["length", "kind", "code"]].astype({"code": int})
    frame["kind"] = frame["kind"].map({"a": 0.0, "b": 1.0, "c": 2.0})
    numbers, mask = frame.to_numpy(float), np.array([False, True, True])
    density, *others = (
        tfr.FlowDensity(categorical_features=each, random_state=0).fit(numbers)
        for each in (mask, mask.tolist(), [1, 2])
    )
    for other in others:
        np.testing.assert_array_equal(other.score_samples(numbers), density.score_samples(numbers))
    with pytest.raises(ValueError, match=r"3 bools as categorical_features.* got \[True, False\]"):
        tfr.FlowDensity(categorical_features=[True, False]).fit(numbers)
    is_missing = np.random.default_rng(0).random(numbers.shape) < 0.2
    holes = np.where(is_missing, np.nan, numbers)
    masked = np.ma.array(np.where(is_missing, 1.0, numbers), mask=is_missing)
    of_holes, of_masked = (clone(density).fit(each) for each in (holes, masked))
    np.testing.assert_array_equal(of_masked.score_samples(masked), of_holes.score_samples(holes))


@pytest.mark.usefixtures("few_components")
@pytest.mark.parametrize("kind", ["arrow", "dictionary", "bool", "tuple", "array"])
def test_kinds_of_categories(kind):
    rng = np.random.default_rng(0)
    texts = pd.Series(rng.choice(["x", "y"], 60))
    frame = pd.DataFrame({"a": rng.normal(size=60) + (texts == "x")})
    options = {"random_state": 0}
    if kind == "array":
        frame["c"], options["categorical_features"] = texts, [1]
        table = np.array([[str(a), c] for a, c in frame.to_numpy()])
    else:
        arrow = pytest.importorskip("pyarrow")
        frame["c"] = {
            "arrow": lambda: texts.astype(pd.ArrowDtype(arrow.string())),
            "dictionary": lambda: pd.Series(
                pd.arrays.ArrowExtensionArray(arrow.array(texts.tolist()).dictionary_encode())
            ),
            "bool": lambda: texts.map({"x": True, "y": False}).astype(object).mask(frame["a"] > 2),
            "tuple": lambda: texts.map({"x": (1, 2), "y": (3, 4)}),
        }[kind]()
        table = frame
    density = tfr.FlowDensity(**options).fit(table)
    samples = pd.DataFrame(density.sample(400, random_state=0)).set_axis(["a", "c"], axis=1)
    assert set(samples["c"]) == set(frame["c"].dropna())
    if kind != "array":
        pd.testing.assert_series_equal(samples.dtypes, frame.dtypes)
    assert np.isfinite(density.score(table))


@pytest.mark.usefixtures("few_components")
def test_categories_of_arrays():
    frame = _frame(300)
    numbers = np.column_stack([frame["length"], frame["code"].astype(int), frame["width"]])
    options = {"categorical_features": [1], "random_state": 0}
    density = tfr.FlowDensity(**options).fit(numbers)
    samples = density.sample(200, random_state=0)
    assert samples.dtype == np.float64 and set(samples[:, 1]) <= {30, 10, 20}
    mixed = frame[["length", "kind", "width"]].to_numpy()
    density = tfr.FlowDensity(**options).fit(mixed)
    assert set(density.sample(200, random_state=0)[:, 1]) <= {"a", "b", "c"}
    classes = tfr.FlowDensity(**options).fit(mixed, frame["is_large"])
    assert classes.score(mixed, frame["is_large"]) > density.score(mixed) + 0.1
    assert (classes.sample(50, y=True, random_state=0)[:, 1] != None).all()  # noqa: E711


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"kind": "d"}, {}, r"column kind to have the categories 'a', 'b', 'c', got 'd'"),
        ({}, {"categorical_features": ["sort"]}, r"by name \(kind, .*\) or position .* got 'sort'"),
        ({"kind": np.arange(400).astype(str)}, {}, "stored as objects or strings"),
        ({"kind": [f"n{i}" for i in range(400)]}, {}, "at most 255 .*, got 400 in column kind"),
        (
            {},
            {"bounds": {"kind": (0, 1)}},
            "bounds of a numeric column, got 'the categorical column kind'",
        ),
        ({}, {"categorical_features": ["code"]}, "got kind .*leave categorical_features at"),
    ],
)
def test_errors(density, change, options, message):
    frame = _frame(400)
    with pytest.raises(ValueError, match=message):
        if "have the categories" in message:
            density.score_samples(frame.assign(**change))
        tfr.FlowDensity(**options, **_TINY).fit(frame.assign(**change))
    with pytest.raises(ValueError, match="at least one numeric column"):
        tfr.FlowDensity(**_TINY).fit(frame[["kind"]])


def test_other_columns_than_those_of_fit(density):
    frame = _frame(3)
    other = frame[frame.columns[::-1]]
    for table in (frame.drop(columns="kind"), other, frame.to_numpy()[:, :4], frame.iloc[0]):
        with pytest.raises(ValueError, match=r"expected the 5 columns of fit, `X.*, got") as error:
            density.score_samples(table)
    call, row = re.findall("`(.*?)`", str(error.value))
    with pytest.raises(ValueError, match=r"got a table without code, kind\."):
        density.score_samples(frame.drop(columns=["kind", "code"]))
    scores = density.score_samples(eval(call, {"X": other, "fitted": density}))
    np.testing.assert_array_equal(scores, density.score_samples(frame))
    row = eval(row, {"X": frame, "i": 2})
    np.testing.assert_allclose(density.score_samples(row), scores[2:])
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        assert np.isfinite(density.score_samples(frame.to_numpy())).all()
