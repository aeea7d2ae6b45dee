"""Densities and regressions of tables, beside other packages."""
