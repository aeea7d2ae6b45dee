"""The checks that scikit-learn has for estimators."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

import tfp_realnvp as tfr

_DENSITY, _REGRESSOR = tfr.FlowDensity(num_flows=2), tfr.FlowRegressor(num_flows=2)
_DETECTOR = tfr.FlowOutlierDetector(tfr.FlowDensity(num_flows=2, random_state=0))


@parametrize_with_checks([_DENSITY, _REGRESSOR, _DETECTOR])
@pytest.mark.usefixtures("no_flows", "few_components")
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)
