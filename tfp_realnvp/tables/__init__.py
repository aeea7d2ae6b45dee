"""scikit-learn estimators of the density of table rows, built on the package's public names."""

try:
    from tfp_realnvp.tables.flow_density import FlowDensity
    from tfp_realnvp.tables.flow_outlier_detector import FlowOutlierDetector
    from tfp_realnvp.tables.flow_regressor import FlowRegressor
except ModuleNotFoundError as error:
    raise ImportError(
        f"An estimator of tables needs scikit-learn, SciPy and pandas, got: {error}. Call "
        "`pip install '.[tables]'` or `pip install scikit-learn scipy pandas`."
    ) from error

__all__ = ["FlowDensity", "FlowOutlierDetector", "FlowRegressor"]
