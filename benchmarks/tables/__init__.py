"""Compares the estimators of tables with density estimators and regressions of other packages."""
