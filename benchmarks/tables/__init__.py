"""Compares densities and regressions of tables with other packages."""
