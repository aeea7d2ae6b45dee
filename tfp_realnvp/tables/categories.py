"""The probabilities of categories: mixtures of independent columns."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp, softmax

from tfp_realnvp.tables.table import Rows

__all__ = ["NO_CATEGORIES", "CategoryMixture", "codes_of", "fit_category_mixture", "one_hot"]

_NUM_COMPONENTS = (1, 2, 4, 8, 16, 32)
_NUM_STEPS = 100


def one_hot(codes: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Converts codes [N, C] to indicators [N, Σ sizes], for the numbers of categories in `sizes`.

    NaN, a missing cell, becomes NaN in all its indicators.
    """
    indicators = [
        np.where(np.isnan(column), np.nan, column == np.arange(size))
        for column, size in zip(codes.T[..., np.newaxis], sizes, strict=True)
    ]
    return np.concatenate([np.empty([len(codes), 0]), *indicators], axis=1)


def codes_of(indicators: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Returns the codes [..., C] of indicators [..., Σ sizes]."""
    codes = np.empty([*indicators.shape[:-1], len(sizes)])
    for i, column in enumerate(_split(indicators, sizes)):
        codes[..., i] = column.argmax(axis=-1)
    return codes


def _split(indicators: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    return np.split(indicators, np.cumsum(sizes), axis=-1)[: len(sizes)]


class CategoryMixture(NamedTuple):
    """A mixture of K distributions with independent columns, on indicators [N, H].

    Attributes:
      log_weights: log weights of the components, [K].
      log_probs: log probabilities of the categories, [K, H].
      sizes: number of categories of each column; their sum is H.
    """

    log_weights: np.ndarray
    log_probs: np.ndarray
    sizes: list[int]

    @classmethod
    def fit(cls, rows: Rows, number: int, sizes: list[int], seed: int) -> CategoryMixture:
        """Fits the mixture by expectation maximization.

        Each component gets one pseudo-row, the mean of the overall frequencies and uniform
        frequencies, so that no category is impossible.
        """
        values, weights = Rows.merged(*rows)
        weights = weights * rows.number / weights.sum()
        prior = (weights @ values / weights.sum() + 1 / np.repeat(sizes, sizes)) / 2
        shares = np.random.default_rng(seed).dirichlet(np.ones(number), len(values))
        for _ in range(_NUM_STEPS if number > 1 else 1):
            counts = (weights * shares.T) @ values + prior
            totals = weights @ shares + 1
            log_probs = np.log(counts / totals[:, np.newaxis])
            mixture = cls(np.log(totals / totals.sum()), log_probs, sizes)
            shares = softmax(mixture._joint(values), axis=1)
        return mixture

    @classmethod
    def of(cls, mixtures: list[CategoryMixture], shares: np.ndarray) -> CategoryMixture:
        """Joins mixtures with the given shares into one."""
        log_weights = [
            mixture.log_weights + np.log(share)
            for mixture, share in zip(mixtures, shares, strict=True)
        ]
        log_probs = np.concatenate([mixture.log_probs for mixture in mixtures])
        return cls(np.concatenate(log_weights), log_probs, mixtures[0].sizes)

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        """Returns the log probability of the known cells of rows, [N]."""
        return logsumexp(self._joint(rows), axis=1)

    def sample(self, rows: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """Draws the missing cells of rows given the known ones, from uniform numbers [N, 1 + C]."""
        ends = softmax(self._joint(rows), axis=1).cumsum(axis=1)[:, :-1]
        log_probs = self.log_probs[(uniforms[:, :1] > ends).sum(axis=1)]
        codes = np.empty([len(rows), len(self.sizes)])
        for i, probs in enumerate(_split(np.exp(log_probs), self.sizes)):
            ends = probs.cumsum(axis=1)[:, :-1]
            codes[:, i] = (uniforms[:, 1 + i, np.newaxis] > ends).sum(axis=1)
        return np.where(np.isnan(rows), one_hot(codes, self.sizes), rows)

    def _joint(self, rows: np.ndarray) -> np.ndarray:
        return np.nan_to_num(rows) @ self.log_probs.T + self.log_weights


NO_CATEGORIES = CategoryMixture(np.zeros(1), np.zeros([1, 0]), [])


def fit_category_mixture(
    splits: list[tuple[Rows, Rows]], sizes: list[int], rng: np.random.Generator
) -> tuple[CategoryMixture, float]:
    """Returns the mixture of categories, and the mean log probability of held-out rows.

    The result averages one mixture per split, fitted to its first part. The second parts select the
    number of components by their likelihood.
    """
    if not sizes:
        return NO_CATEGORIES, 0.0
    best = -math.inf
    for number in _NUM_COMPONENTS:
        seed = int(rng.integers(2**31))
        fits = [CategoryMixture.fit(train, number, sizes, seed) for train, _ in splits]
        score = sum(
            part.weights @ fit.log_prob(part.values)
            for fit, (_, part) in zip(fits, splits, strict=True)
        )
        if score <= best:
            break
        best, kept = score, CategoryMixture.of(fits, np.full(len(fits), 1 / len(fits)))
    return kept, best / sum(part.weights.sum() for _, part in splits)
