"""The detector of outliers, as an estimator of scikit-learn."""

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_wine
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import RobustScaler

import tfp_realnvp as tfr

pytestmark = pytest.mark.usefixtures("no_flows")


def _detector(**options):
    density = tfr.FlowDensity(2, random_state=0)
    return tfr.FlowOutlierDetector(density, **options)


def test_rows_of_another_class_are_outliers():
    x, y = load_wine(return_X_y=True, as_frame=True)
    train, held_out, other = x[y == 0][:30], x[y == 0][30:], x[y != 0]
    detector = _detector(contamination=0.1).fit(train)
    assert (detector.fit_predict(train) == -1).sum() == 3
    assert (detector.predict(other) == -1).mean() > 0.95 > (detector.predict(held_out) == 1).mean()
    scores = detector.score_samples(other)
    np.testing.assert_array_equal(detector.decision_function(other), scores - detector.offset_)
    assert detector.feature_names_in_.tolist() == x.columns.tolist()


def test_rows_beside_a_narrow_peak_are_usual():
    rng = np.random.default_rng(0)
    x = rng.normal(size=[200, 2])
    x[:190, 0] = 0.0
    beside, far = [0.7, 0.0], [0.0, 4.0]
    scores = tfr.FlowOutlierDetector().fit(x).score_samples([beside, far])
    assert scores[0] > scores[1]
    # The peak of a density without the noise is 7 nats higher.
    scores = (
        tfr.FlowOutlierDetector(tfr.FlowDensity(random_state=0)).fit(x).score_samples([beside, far])
    )
    assert scores[0] < scores[1]


def test_any_density():
    rows = np.random.default_rng(0).normal(size=[50, 2])
    detector = tfr.FlowOutlierDetector(GaussianMixture(random_state=0)).fit(pd.DataFrame(rows))
    assert (detector.predict(rows) == -1).sum() == 5


@pytest.mark.parametrize("share", [0.0, 0.6, "auto"])
def test_errors(share):
    detector = tfr.FlowOutlierDetector(contamination=share)
    with pytest.raises((ValueError, TypeError), match=r"contamination in \(0, 0.5\], got"):
        detector.fit([[1.0], [2.0]])
    assert not hasattr(detector, "density_")


@pytest.mark.parametrize("kind", ["array", "frame", "pipeline"])
@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_rows_with_missing_cells_are_as_usual_as_others(unit, kind):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=[1_000, 3]) @ [[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.5]]
    is_missing = rng.random(1_000) < 0.1
    rows[is_missing, 1] = np.nan
    far = np.float64([[9.0, np.nan, -4.0], [9.0, 9.0, -4.0], [np.nan, 0.0, 0.0]])
    rows, far = rows * [1.0, unit, 1.0], far * [1.0, unit, 1.0]
    density = tfr.FlowDensity(num_flows=0, noise=0.1)
    if kind == "frame":
        rows = pd.DataFrame(rows, columns=[*"xyz"]).assign(label=np.where(rows[:, 0] > 0, "a", "b"))
        far = pd.DataFrame(far, columns=[*"xyz"]).assign(label=["a", None, "b"])
    if kind == "pipeline":
        density = make_pipeline(RobustScaler(), density)
    detector = tfr.FlowOutlierDetector(density, contamination=0.1).fit(rows)
    is_outlier = detector.predict(rows) == -1
    assert is_outlier.mean() == pytest.approx(0.1, abs=0.002)
    assert 0.02 < is_outlier[is_missing].mean() < 0.2
    assert detector.predict(far).tolist() == [-1, -1, 1]
    # Scores of complete rows are log densities.
    complete = rows[~is_missing]
    expected = detector.density_.score_samples(complete)
    np.testing.assert_array_equal(detector.score_samples(complete), expected)
