"""Densities of tables, as estimators of scikit-learn."""

from tfp_realnvp.internal.optional_packages import missing_package

try:
    from tfp_realnvp.tables.flow_density import FlowDensity
    from tfp_realnvp.tables.flow_outlier_detector import FlowOutlierDetector
    from tfp_realnvp.tables.flow_regressor import FlowRegressor
except ImportError as error:
    raise missing_package("An estimator of tables", "scikit-learn") from error

__all__ = ["FlowDensity", "FlowOutlierDetector", "FlowRegressor"]
