"""Compares density estimators and regressions for tables with those of other packages."""
