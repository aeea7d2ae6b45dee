"""Tables that `fit` and `score` refuse, or whose rows they ignore."""

import numpy as np
import pandas as pd
import pytest

import tfp_realnvp as tfr

_OPTIONS = {"num_flows": 0, "random_state": 0, "verbose": 0}


def test_a_row_of_weight_zero_that_is_impossible_does_not_count():
    rows = np.random.default_rng(0).gamma(2.0, size=[200, 2])
    density = tfr.FlowDensity(bounds={0: (0, None)}, **_OPTIONS).fit(rows)
    expected = density.score(rows)
    with_impossible = np.concatenate([rows, [[-1.0, 1.0]]])
    weights = np.append(np.ones(200), 0.0)
    assert density.score(with_impossible, sample_weight=weights) == pytest.approx(expected)
    assert density.score(with_impossible) == -np.inf


_NOT_APART = "expected columns whose values float64 can tell apart"


@pytest.mark.parametrize("kind", [pd.DataFrame, np.asarray, np.ndarray.tolist])
@pytest.mark.parametrize("sign", [1, -1, 1e-30])
def test_columns_that_float64_cannot_tell_apart(kind, sign):
    times = 1_700_000_000_000_000_000 + np.random.default_rng(0).integers(0, 10**5, [100, 2])
    table = kind(sign * times)
    for estimator in (tfr.FlowDensity(**_OPTIONS), tfr.FlowRegressor(**_OPTIONS)):
        rest = () if isinstance(estimator, tfr.FlowDensity) else (np.arange(100.0),)
        with pytest.raises(ValueError, match=rf"{_NOT_APART}.* in column 0\. Subtract"):
            estimator.fit(table, *rest)
    near = kind(times - times.min())
    assert np.isfinite(tfr.FlowDensity(**_OPTIONS).fit(near).score_samples(near)).all()
    with pytest.raises(ValueError, match=_NOT_APART):
        tfr.FlowRegressor(**_OPTIONS).fit(np.arange(100.0)[:, np.newaxis], times[:, 0])


@pytest.mark.parametrize("location", [1.7e18, 1e4])
def test_the_least_spread_that_is_accepted_is_modeled(location):
    scale = 2e-12 * location
    rows = np.random.default_rng(0).normal(size=[300, 2]) * [scale, 1] + [location, 0]
    samples = tfr.FlowDensity(**_OPTIONS).fit(rows).sample(2_000, random_state=0)
    assert (samples[:, 0] - location).std() == pytest.approx(scale, rel=0.2)
    rows[:, 0] = location + (rows[:, 0] - location) / 4
    with pytest.raises(ValueError, match=_NOT_APART):
        tfr.FlowDensity(**_OPTIONS).fit(rows)


def test_a_name_of_two_columns():
    frame = pd.DataFrame(np.random.default_rng(0).gamma(2.0, size=[100, 3]), columns=[*"xxy"])
    density = tfr.FlowDensity(bounds={"x": (0, None)}, **_OPTIONS)
    # Later releases of scikit-learn refuse the frame itself.
    message = r"(unique column names, got.*'x'|by a name of one column .* got 'x', the name of 2)"
    with pytest.raises(ValueError, match=f"(?s){message}"):
        density.fit(frame)
    with pytest.raises(ValueError, match=r"by a name of one column .* got 'x', the name of 2"):
        tfr.FlowDensity(categorical_features=["x"], **_OPTIONS).fit(frame)
