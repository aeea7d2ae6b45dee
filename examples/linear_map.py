"""Affine maps that standardize the rows of a table."""

from __future__ import annotations

import numpy as np

__all__ = ["LinearMap", "standardizing", "whitening"]


class LinearMap:
    """`z = (x - mean) matrix` for rows x [N, D].

    Attributes:
      log_det: log |det matrix|: log p(x) = log p(z) + log_det.
    """

    def __init__(self, mean: np.ndarray, matrix: np.ndarray) -> None:
        self._mean, self._matrix = mean, matrix
        self.log_det = float(np.linalg.slogdet(matrix)[1])

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return (rows - self._mean) @ self._matrix


def standardizing(rows: np.ndarray) -> LinearMap:
    """Returns the map that gives each column of `rows` mean 0 and variance 1."""
    return LinearMap(rows.mean(axis=0), np.diag(1 / rows.std(axis=0)))


def whitening(rows: np.ndarray) -> LinearMap:
    """Returns the map that gives `rows` mean 0 and the identity as covariance."""
    cholesky = np.linalg.cholesky(np.atleast_2d(np.cov(rows.T, ddof=0)))
    return LinearMap(rows.mean(axis=0), np.linalg.inv(cholesky).T)
