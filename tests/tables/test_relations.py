"""Relations between fits that hold for all options, checked where two options meet.

Each pair of values of the features below meets in at least one case. Cases with flows take most of
the time: all but one of them are for `make test-all`.
"""

import functools
import itertools
import pickle
import warnings
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from hardening.covering_array import covering_array

import tfp_realnvp as tfr
from tfp_realnvp.tables import missing, simple_densities, stack

_FEATURES = {
    "kind": ("density", "classes", "one number", "two numbers"),
    "weights": ("none", "fractional", "integers"),
    "gaps": (False, True),
    "categories": (False, True),
    "bounds": (False, True),
    "periods": (False, True),
    "rounded": (False, True),
    "form": ("frame", "array"),
}
_NUM_ROWS = 130
_OPTIONS = {"num_flows": 2, "num_couplings": 2, "num_filters": 8, "max_steps": 100, "noise": 0.1}


class Table(NamedTuple):
    """Columns, labels or numbers, weights, and the limits of columns by name."""

    frame: Any
    target: Any
    weights: Any
    bounds: dict
    periods: dict


def _table(case, number, seed=0):
    rng = np.random.default_rng(seed)
    t, noise = rng.uniform(-2, 2, number), rng.normal(size=[number, 6])
    rooms = 4 + t**2 + noise[:, 0]
    columns = {
        "length": 3 * np.sin(2 * t) + 0.5 * noise[:, 1],
        "price": np.exp(t / 2 + 0.5 * noise[:, 2]),
        "wind": np.degrees(t + 0.5 * noise[:, 3]) % 360,
        "rooms": np.rint(rooms) if case["rounded"] else rooms,
    }
    if case["categories"]:
        columns["kind"] = np.array(["a", "b", "c"], object)[rng.integers(3, size=number)]
    frame = pd.DataFrame(columns)
    if case["gaps"]:
        frame = frame.where(rng.random(frame.shape) > 0.1, None if case["categories"] else np.nan)
        frame = frame.astype({name: np.float64 for name in frame if name != "kind"})
    y = np.stack([t + 0.5 * noise[:, 4], t**2 + 0.5 * noise[:, 5]], axis=1)
    y = np.rint(3 * y) if case["rounded"] else y
    target = {
        "density": None,
        "classes": np.where(t + noise[:, 4] > 0, "left", "right"),
        "one number": y[:, 0],
        "two numbers": y,
    }[case["kind"]]
    weights = {
        "none": None,
        "fractional": rng.integers(1, 5, number) / 10,
        "integers": rng.integers(1, 4, number),
    }[case["weights"]]
    bounds = {"price": (0, None)} if case["bounds"] else {}
    if case["bounds"] and case["kind"] in ("one number", "two numbers"):
        bounds |= {"y" if case["kind"] == "one number" else "y[:, 1]": (-30, None)}
    periods = {"wind": 360} if case["periods"] else {}
    return Table(frame, target, weights, bounds, periods)


def _rows_of(case, frame):
    return frame if case["form"] == "frame" else frame.to_numpy()


def _fit(case, table, seed=0):
    names, options = list(table.frame), {}
    of_array = case["form"] == "array"
    for name in ("bounds", "periods"):
        limits = getattr(table, name)
        options[name] = {
            names.index(k) if of_array and k in names else k: v for k, v in limits.items()
        }
    if of_array and case["categories"]:
        options["categorical_features"] = [names.index("kind")]
    kind = tfr.FlowDensity if case["kind"] in ("density", "classes") else tfr.FlowRegressor
    estimator = kind(random_state=seed, verbose=0, learning_rate=0.02, **options, **_OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return estimator.fit(_rows_of(case, table.frame), table.target, table.weights)


def _log_probs(case, estimator, table):
    rows = _rows_of(case, table.frame)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # missing cells that rest on few proposals
        if case["kind"] == "density":
            return estimator.score_samples(rows)
        if case["kind"] == "classes":
            proba = estimator.predict_proba(rows)[:, 0]
            return np.concatenate([estimator.score_samples(rows), proba])
        return estimator.score_samples(rows, table.target)


def _chosen(table, order):
    """Selects rows."""
    target, weights = (
        None if array is None else array[order] for array in (table.target, table.weights)
    )
    frame = table.frame.iloc[order].reset_index(drop=True)
    return table._replace(frame=frame, target=target, weights=weights)


def _concatenated(one, other):
    frame = pd.concat([one.frame, other.frame])
    target = None if one.target is None else np.concatenate([one.target, other.target])
    return one._replace(frame=frame, target=target)


class Fit(NamedTuple):
    """A fitted estimator, and its log densities of other rows."""

    case: dict
    table: Table
    test: Table
    estimator: Any
    log_probs: np.ndarray

    def assert_same(self, table, offset=0.0, atol=1e-6, case=None):
        case = case or self.case
        log_probs = _log_probs(case, _fit(case, table), self.test)
        np.testing.assert_allclose(log_probs, self.log_probs + offset, atol=atol)


@functools.cache
def _fitted(items):
    case = dict(items)
    # Ten rows are there three times.
    order = np.concatenate([np.tile(np.arange(10), 3), np.arange(10, _NUM_ROWS - 20)])
    table, test = _chosen(_table(case, _NUM_ROWS - 20), order), _table(case, 50, seed=1)
    estimator = _fit(case, table)
    return Fit(case, table, test, estimator, _log_probs(case, estimator, test))


@pytest.fixture
def fit(request, monkeypatch):
    case = request.param
    monkeypatch.setattr(simple_densities, "_NUM_COMPONENTS", (1, 2))
    monkeypatch.setattr(missing, "_NUM_STEPS", 5)
    monkeypatch.setattr(missing, "_NUM_MIXTURES", 1)
    monkeypatch.setattr(stack, "_MIN_ROWS_OF_FLOWS", 0 if case["flows"] else np.inf)
    if case["flows"]:  # alone, so that they have a share
        monkeypatch.setattr(stack, "fit_normal_mixtures", lambda *_: [])
    return _fitted((*case.items(),))


_CASES = covering_array(_FEATURES, constraints=[])


def _each(is_chosen=lambda case: True, with_flows=True):
    """Parametrizes a test by the cases for which a relation says something."""
    chosen = []
    for i, case in enumerate(_CASES):
        if not is_chosen(case):
            continue
        name = "-".join(
            value if isinstance(value, str) else name for name, value in case.items() if value
        )
        chosen.append(pytest.param(case | {"flows": False}, id=name))
        marks = [pytest.mark.full] if i else []
        if with_flows:
            chosen.append(pytest.param(case | {"flows": True}, id=f"{name}-flows", marks=marks))
    return pytest.mark.parametrize("fit", chosen, indirect=True)


@_each()
def test_only_ratios_of_weights_count(fit):
    weights = np.ones(_NUM_ROWS) if fit.table.weights is None else fit.table.weights
    for factor in (1 / 60, 1e-150, 1e100):
        fit.assert_same(fit.table._replace(weights=factor * weights))


@_each()
def test_a_weight_of_two_is_a_row_twice_and_a_weight_of_zero_is_no_row(fit):
    rng, number = np.random.default_rng(2), _NUM_ROWS
    weights = np.ones(number) if fit.table.weights is None else fit.table.weights
    is_twice = rng.random(number) < 0.3
    weighted = fit.table._replace(weights=np.where(is_twice, 2, 1) * weights)
    log_probs = _log_probs(fit.case, _fit(fit.case, weighted), fit.test)
    assert abs(log_probs - fit.log_probs).max() > 1e-3
    more = _concatenated(fit.table, _table(fit.case, 20, seed=3))
    more = more._replace(weights=np.append(weights, np.zeros(20)))
    order = np.concatenate([np.arange(number + 20), np.flatnonzero(is_twice)])
    copies = _chosen(more, rng.permutation(order))
    fit._replace(log_probs=log_probs).assert_same(copies)


@_each(lambda case: case["periods"])
def test_whole_turns_are_the_same_row(fit):
    turns = 360 * np.random.default_rng(2).integers(-3, 4, _NUM_ROWS)
    frame = fit.table.frame.assign(wind=fit.table.frame["wind"] + turns)
    turned = fit.table._replace(frame=frame)
    fit.assert_same(turned)
    twice = _concatenated(fit.table, turned)
    weights = None if fit.table.weights is None else np.tile(fit.table.weights, 2)
    fit.assert_same(twice._replace(weights=weights))


@_each(with_flows=False)
def test_units_add_a_constant(fit):
    """Scales and shifts that keep rounded columns rounded, and angles on their circle."""
    scales = {"length": 8.0, "price": 100.0, "wind": 0.5, "rooms": 0.5}
    shifts = {"length": 30.0, "price": 5.0, "wind": 0.0, "rooms": -2.0}

    def in_units(table, of_y):
        frame = table.frame.assign(
            **{name: scales[name] * table.frame[name] + shifts[name] for name in scales}
        )
        limits = {
            "bounds": {
                name: (5.0 if name == "price" else -30 * of_y - 1, None) for name in table.bounds
            }
        }
        limits["periods"] = dict.fromkeys(table.periods, 180)
        target = of_y * table.target - 1 if of_y else table.target
        return table._replace(frame=frame, target=target, **limits)

    is_number = fit.case["kind"] in ("one number", "two numbers")
    of_y = 0.5 if is_number else 0.0
    test = in_units(fit.test, of_y)
    log_scale = sum(np.log(scale) for scale in scales.values())
    if is_number:
        log_scale = np.log(of_y) * (2 if fit.case["kind"] == "two numbers" else 1)
        offset = -log_scale
    else:
        is_known = fit.test.frame[list(scales)].notna()
        offset = -(is_known * np.log(list(scales.values()))).sum(axis=1).to_numpy()
        if fit.case["kind"] == "classes":
            offset = np.append(offset, np.zeros(50))
    fit._replace(test=test).assert_same(in_units(fit.table, of_y), offset, atol=1e-3)


@_each(with_flows=False)
def test_the_order_of_columns_matters_no_more_than_the_seed(fit):
    """Rows are sorted by columns, and folds, clusters and missing cells are drawn in this order."""
    names = list(fit.table.frame)[::-1]
    table = fit.table._replace(frame=fit.table.frame[names])
    test = fit.test._replace(frame=fit.test.frame[names])
    errors = _log_probs(fit.case, _fit(fit.case, table), test) - fit.log_probs
    seeds = [_fit(fit.case, fit.table, seed) for seed in (1, 2)]
    of_seeds = [_log_probs(fit.case, other, fit.test) - fit.log_probs for other in seeds]
    for size in (lambda each: abs(each).mean(), lambda each: abs(each.mean()) + 0.05):
        assert size(errors) < 2 * max(map(size, of_seeds))


@_each()
def test_a_frame_is_an_array(fit):
    form = {"frame": "array", "array": "frame"}[fit.case["form"]]
    fit.assert_same(fit.table, case=fit.case | {"form": form})


@_each()
def test_a_pickled_fit_is_the_fit(fit):
    again = pickle.loads(pickle.dumps(fit.estimator))
    np.testing.assert_array_equal(_log_probs(fit.case, again, fit.test), fit.log_probs)


@_each(lambda case: case["kind"] == "one number")
def test_quantiles_invert_the_cdf(fit):
    rows, levels = _rows_of(fit.case, fit.test.frame), [0.01, 0.3, 0.5, 0.95]
    quantiles = fit.estimator.predict_quantiles(rows, levels)
    cdf = np.array([fit.estimator.cdf(rows, values) for values in quantiles])
    levels = np.outer(levels, np.ones(50))
    if fit.case["rounded"]:
        before = [fit.estimator.cdf(rows, values - 1) for values in quantiles]
        assert (before < levels).all() and (levels <= cdf + 1e-6).all()
    else:
        np.testing.assert_allclose(cdf, levels, atol=1e-4)


@_each(lambda case: case["kind"] in ("one number", "two numbers"))
def test_the_density_of_y_integrates_to_one(fit):
    mean, width = fit.table.target.mean(axis=0), fit.table.target.std(axis=0)
    for i in range(3):
        frame = fit.test.frame.iloc[[i]]
        if fit.case["kind"] == "one number":
            axis = mean + width * np.linspace(-40, 40, 8_001)
            axis = np.arange(np.rint(axis[0]), axis[-1]) if fit.case["rounded"] else axis
            y, cell = axis, axis[1] - axis[0]
        else:
            axis = np.linspace(-8, 8, 161)
            y = mean + width * np.stack(np.meshgrid(axis, axis), axis=-1).reshape([-1, 2])
            cell = np.prod(width) * (axis[1] - axis[0]) ** 2
        rows = fit.test._replace(frame=frame.iloc[[0] * len(y)], target=y)
        total = np.exp(_log_probs(fit.case, fit.estimator, rows)).sum() * cell
        assert total == pytest.approx(1, abs=0.01)


@_each(lambda case: case["kind"] in ("density", "classes"))
def test_marginal_densities_are_sums(fit):
    axes = {"wind": np.linspace(0, 360, 361), "length": np.linspace(-40, 40, 1_601)}
    if fit.case["categories"]:
        axes["kind"] = np.array(["a", "b", "c"], object)
    complete = fit.test.frame.dropna()
    for i, (name, axis) in itertools.product(range(3), axes.items()):
        if name == "wind" and not fit.case["periods"]:
            continue
        row = complete.iloc[[i]]
        rows = row.iloc[[0] * len(axis)].assign(**{name: axis})
        density = np.exp(fit.estimator.score_samples(_rows_of(fit.case, rows)))
        total = density.sum() if name == "kind" else np.trapezoid(density, axis)
        missing = row.assign(**{name: None if name == "kind" else np.nan})
        log_total = fit.estimator.score_samples(_rows_of(fit.case, missing))[0]
        tolerance = 1e-6 if name == "kind" else 0.15
        assert np.log(total) == pytest.approx(log_total, abs=tolerance)
