"""Latent class models of categories: mixtures of distributions with independent columns."""

import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp, softmax
from scipy.stats import qmc

from tfp_realnvp.tables.table import Columns, Rows, Splits, drawn, one_hot, split_categories

_NUM_COMPONENTS = (1, 2, 4, 8, 16, 32)
_NUM_STEPS, _MAX_COMBINATIONS = 100, 64


class CategoryMixture(NamedTuple):
    """A mixture of K distributions with independent columns, over one-hot indicators [N, H].

    Attributes:
      log_weights: log weights of the components, [K].
      log_probs: log probabilities of the categories, [K, H].
      sizes: number of categories of each column; their sum is H.
    """

    log_weights: np.ndarray
    log_probs: np.ndarray
    sizes: list[int]

    @classmethod
    def fit(cls, rows: Rows, number: int, sizes: list[int], seed: int) -> "CategoryMixture":
        """Fits the mixture by expectation maximization.

        Each component gets pseudocounts of one row: half in proportion to the frequencies of the
        categories, half uniform. No category thus has probability 0.
        """
        total, rows = rows.number, Rows.merged(*rows)
        values, weights = rows.values, rows.weights * total / rows.weights.sum()
        prior = (rows.mean(values) + 1 / np.repeat(sizes, sizes)) / 2
        shares = np.random.default_rng(seed).dirichlet(np.ones(number), len(values))
        for _ in range(_NUM_STEPS if number > 1 else 1):
            counts = (weights * shares.T) @ values + prior
            totals = weights @ shares + 1
            log_probs = np.log(counts / totals[:, np.newaxis])
            mixture = cls(np.log(totals / totals.sum()), log_probs, sizes)
            shares = softmax(mixture._joint(values), axis=1)
        return mixture

    @classmethod
    def of(cls, mixtures: list["CategoryMixture"], shares: np.ndarray) -> "CategoryMixture":
        """Combines mixtures with the weights `shares` into one mixture."""
        log_weights, log_probs, sizes = zip(*mixtures, strict=True)
        log_weights = [part + np.log(p) for part, p in zip(log_weights, shares, strict=True)]
        return cls(np.concatenate(log_weights), np.concatenate(log_probs), sizes[0])

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        """Returns the log probability of the known cells of rows, [N]."""
        return logsumexp(self._joint(rows), axis=1)

    def sample(self, rows: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """Imputes missing cells of rows with samples, from uniform numbers [N, 1 + C]."""
        components = drawn(softmax(self._joint(rows), axis=1), uniforms[:, 0])
        columns = split_categories(np.exp(self.log_probs[components]), self.sizes)
        codes = np.column_stack([rows[:, :0], *map(drawn, columns, uniforms.T[1:])])
        return np.where(np.isnan(rows), one_hot(codes, self.sizes), rows)

    def completions(self, indicators: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns completions [E, N, H] of rows [N, H], and their log weights [E, N].

        All rows miss the same categories. The completions are all combinations of these categories,
        with log weights of 0. If there are too many combinations, the completions are samples given
        the known categories, and the weights are log importance weights.
        """
        columns = split_categories(indicators, self.sizes)
        numbers = [column.shape[1] if np.isnan(column).any() else 1 for column in columns]
        if math.prod(numbers) > _MAX_COMBINATIONS:
            repeated = np.tile(indicators, [_MAX_COMBINATIONS, 1])
            uniforms = qmc.Halton(1 + len(numbers), rng=0).random(_MAX_COMBINATIONS)
            samples = self.sample(repeated, np.repeat(uniforms, len(indicators), axis=0))
            log_weights = self.log_prob(repeated) - self.log_prob(samples)
            shape = [_MAX_COMBINATIONS, len(indicators), -1]
            log_weights = log_weights.reshape(shape[:2]) - np.log(_MAX_COMBINATIONS)
            return samples.reshape(shape), log_weights
        codes = np.array(list(itertools.product(*map(range, numbers))), float)
        filled = one_hot(codes, self.sizes)[:, np.newaxis]
        filled = np.where(np.isnan(indicators), filled, indicators)
        return filled, np.zeros(filled.shape[:2])

    def _joint(self, rows: np.ndarray) -> np.ndarray:
        return np.nan_to_num(rows) @ self.log_probs.T + self.log_weights


def fit_category_mixture(
    splits: Splits, columns: Columns, rng: np.random.Generator
) -> tuple[CategoryMixture, float]:
    """Returns a mixture of categories, and the mean log probability of held-out rows.

    The result averages one mixture per split, fitted to the training rows of the split. Held-out
    rows select the number of components. The first columns of the rows are indicators that
    `columns` standardized.
    """
    sizes, best = columns.sizes, -math.inf
    if not sizes:
        return CategoryMixture(np.zeros(1), np.zeros([1, 0]), []), 0.0
    splits = [tuple(part.mapped(columns.indicators) for part in split) for split in splits]
    held_out = Rows.concatenated(part for _, part in splits)
    for number in _NUM_COMPONENTS:
        seed = int(rng.integers(2**31))
        fits = [CategoryMixture.fit(train, number, sizes, seed) for train, _ in splits]
        log_probs = [fit.log_prob(part.values) for fit, (_, part) in zip(fits, splits, strict=True)]
        score = held_out.mean(np.concatenate(log_probs))
        if score <= best:
            break
        best, kept = score, CategoryMixture.of(fits, np.full(len(fits), 1 / len(fits)))
    return kept, best
