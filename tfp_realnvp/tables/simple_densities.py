"""Densities without networks: Student t distributions and normal mixtures.

Every density in a `TableStack` models p(events | conditions), with the methods `log_prob`, `tails`,
`mean_of_events` and `sample`. The densities in this file use NumPy: it fits thousands of rows in
the time that TensorFlow needs to trace a training step.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit
from scipy.stats import t
from sklearn.cluster import kmeans_plusplus

from tfp_realnvp.internal.batch_dims import slices
from tfp_realnvp.internal.progress import Progress
from tfp_realnvp.tables.table import Rows, Splits, drawn

_SHRINKAGES = np.geomspace(1e-4, 1.0, 17)
_PENALTIES = np.geomspace(1e-4, 1e2, 13)
# Joint mixtures of conditions and events add this to the variances of standardized conditions.
_LEAST_CONDITION_VARIANCE = 0.01
_NUM_COMPONENTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_NUM_KEPT_MIXTURES = 3
# EM converges on small tables. On large ones these limits keep a fit within a few seconds.
_MIN_STEPS, _MAX_STEPS, _MAX_ROW_STEPS = 40, 150, 300_000
# The mixtures have few parameters, which more rows hardly improve.
_MAX_ROWS = 50_000
_TOLERANCE, _CLUSTERING_STEPS = 1e-5, 10
_CHUNK_SIZE, _MIN_CHUNK = 2**13, 32
# Maps a number of columns D to the indices (i, j) of all products of two columns, i <= j < D.
_pairs = functools.cache(np.triu_indices)


class StudentT(NamedTuple):
    """p(events | conditions) as an affine map of independent Student t variables.

    A row [C + D] contains conditions, then events. The elements of
    `latents = (events - mean - conditions @ slopes) @ matrix` are independent, with `df` degrees of
    freedom. The shapes are mean [D], slopes [C, D] and matrix [D, D]; `log_det` = log |det matrix|.
    """

    mean: np.ndarray
    slopes: np.ndarray
    matrix: np.ndarray
    log_det: float
    df: float

    def latents(self, rows: np.ndarray) -> np.ndarray:
        """Maps the events of rows to latents, [N, D]."""
        conditions, events = np.split(rows, [len(self.slopes)], axis=-1)
        return (events - self.mean - conditions @ self.slopes) @ self.matrix

    def with_latents(self, rows: np.ndarray) -> np.ndarray:
        """Replaces the events of rows [N, C + D] by their latents."""
        return np.column_stack([rows[:, : len(self.slopes)], self.latents(rows)])

    def mixture_of_events(self, mixture: NormalMixture) -> NormalMixture:
        """Converts a joint density of (conditions, latents) to one of (conditions, events)."""
        number = len(self.slopes)
        matrix = np.eye(mixture.means.shape[1])
        matrix[number:, number:] = np.linalg.inv(self.matrix)
        matrix[:number, number:] = self.slopes
        means = mixture.means @ matrix + np.append(np.zeros(number), self.mean)
        return NormalMixture(mixture.log_weights, means, matrix.T @ mixture.covariances @ matrix)

    def events(self, latents: np.ndarray, conditions: np.ndarray) -> np.ndarray:
        """Maps latents to events [N, D] given conditions; the inverse of `latents`."""
        return latents @ np.linalg.inv(self.matrix) + self.mean_of_events(conditions)

    def rotated(self, rng: np.random.Generator) -> StudentT:
        """Rotates the latents at random. The density changes: Student t is not isotropic."""
        rotation = np.linalg.qr(rng.normal(size=self.matrix.shape))[0]
        return self._replace(matrix=self.matrix @ rotation)

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        """Returns the log density of the events of rows given their conditions, [N]."""
        return t.logpdf(self.latents(rows), self.df).sum(axis=1) + self.log_det

    def mean_of_events(self, conditions: np.ndarray) -> np.ndarray:
        """Returns the mean of events given conditions, [N, D]."""
        return self.mean + conditions @ self.slopes

    def tails(self, rows: np.ndarray) -> np.ndarray:
        """Returns the CDF and the survival function at one-dimensional events, [2, N]."""
        latents = np.sign(self.matrix[0, 0]) * self.latents(rows)[:, 0]
        return stdtr(self.df, np.stack([latents, -latents]))

    def sample(self, conditions: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """Returns events [N, D] given conditions [N, C] from uniform numbers [N, 1 + D]."""
        return self.events(stdtrit(self.df, uniforms[:, 1:]), conditions)


def fit_student_t(splits: Splits, widths: np.ndarray, df: float) -> list[StudentT]:
    """Fits, for each split, an affine map that whitens the training rows.

    The slopes come from ridge regression; its penalty minimizes the held-out squared error. Let C
    be the covariance of the regression errors after uniform noise of these `widths` is added. The
    map whitens with (1 - a) C + a I; the shrinkage a maximizes the held-out likelihood.
    """
    slopes = _ridge_slopes(splits, splits[0][0].values.shape[1] - len(widths))
    fits, log_likelihoods = [], np.zeros(len(_SHRINKAGES))
    for slope, split in zip(slopes, splits, strict=True):
        train, held_out = (_errors(rows, slope) for rows in split)
        mean, covariance = train.covariance()
        variances, axes = np.linalg.eigh(covariance + np.diag(widths**2 / 12))
        variances = variances.clip(min=0.0)
        fits.append((mean, slope, variances, axes))
        squares = ((held_out.values - mean) @ axes) ** 2
        for i, shrinkage in enumerate(_SHRINKAGES):
            shrunk = (1 - shrinkage) * variances + shrinkage
            log_prob = -(df + 1) / 2 * np.log1p(squares / shrunk / df) - np.log(shrunk) / 2
            log_likelihoods[i] += held_out.weights @ log_prob.sum(axis=1)
    # A single row has no covariance, and leaves no row to hold out. Use the identity.
    shrinkage = _SHRINKAGES[log_likelihoods.argmax()] if _is_held_out(splits) else 1.0
    starts = []
    for mean, slope, variances, axes in fits:
        stddev = np.sqrt((1 - shrinkage) * variances + shrinkage)
        starts.append(StudentT(mean, slope, axes / stddev, -np.log(stddev).sum(), df))
    return starts


def _is_held_out(splits: Splits) -> bool:
    return splits[0][0] is not splits[0][1]


def _errors(rows: Rows, slopes: np.ndarray) -> Rows:
    conditions, events = np.split(rows.values, [len(slopes)], axis=1)
    return Rows(events - conditions @ slopes, rows.weights)


def _ridge_slopes(splits: Splits, number: int) -> list[np.ndarray]:
    """Returns ridge slopes [C, D] for each split; the penalty minimizes the held-out error.

    `number` is C, the number of conditions.
    """
    slopes = np.zeros([len(_PENALTIES), len(splits), number, splits[0][0].values.shape[1] - number])
    if number == 0 or not _is_held_out(splits):
        return list(slopes[0])
    errors = np.zeros(len(_PENALTIES))
    for j, (train, held_out) in enumerate(splits):
        mean, covariance = train.covariance()
        values, axes = np.linalg.eigh(covariance[:number, :number])
        products = axes.T @ covariance[:number, number:]
        for i, penalty in enumerate(_PENALTIES):
            slopes[i, j] = axes @ (products / (values.clip(min=0.0) + penalty)[:, np.newaxis])
            shifted = held_out._replace(values=held_out.values - mean)
            errors[i] += held_out.weights @ (_errors(shifted, slopes[i, j]).values ** 2).sum(axis=1)
    return list(slopes[errors.argmin()])


class NormalMixture(NamedTuple):
    """A mixture of K normal distributions, with covariances [K, D, D]."""

    log_weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    @classmethod
    def fit(
        cls,
        rows: Rows,
        number: int,
        is_diagonal: bool,
        least_variance: np.ndarray,
        seed: int,
        max_steps: int = _MAX_STEPS,
    ) -> NormalMixture:
        """Fits the mixture by expectation maximization, starting from k-means clusters.

        The columns of `rows` have variances of about 1. `least_variance`, [D], is added to the
        variance of each column in each component.
        """
        clusters = _clusters(rows, number, seed)
        weighted = _chunks(rows.values, clusters * rows.weights[:, np.newaxis])
        moments = sum(shares.T @ _features(values).T for values, shares in weighted)
        log_likelihood = -math.inf
        for _ in range(min(max_steps, max(_MAX_ROW_STEPS // len(clusters), _MIN_STEPS))):
            mixture = cls._of_moments(moments, is_diagonal, least_variance)
            before, (moments, log_likelihood) = log_likelihood, mixture._moments(rows)
            if log_likelihood - before < _TOLERANCE:
                break
        return mixture

    def _moments(self, rows: Rows) -> tuple[np.ndarray, float]:
        """Sums `_features`, weighted by responsibilities, [K, F]; also returns the mean log p."""
        coefficients, log_likelihood = self._coefficients(), 0.0
        moments = np.zeros(coefficients.shape)
        for values, weights in _chunks(*rows):
            features = _features(values)
            log_probs, shares = _log_sum_exp((coefficients @ features).T)
            moments += (shares.T * weights) @ features.T
            log_likelihood += weights @ log_probs
        return moments, log_likelihood / rows.weights.sum()

    @classmethod
    def _of_moments(
        cls, moments: np.ndarray, is_diagonal: bool, least_variance: np.ndarray
    ) -> NormalMixture:
        """Computes the mixture from the sums [K, F] of `_moments` (M-step)."""
        size = len(least_variance)
        sizes = moments[:, 0] + 1e-12 * moments[:, 0].sum()
        means = moments[:, 1 : 1 + size] / sizes[:, np.newaxis]
        first, second = _pairs(size)
        covariances = np.zeros([len(moments), size, size])
        covariances[:, first, second] = moments[:, 1 + size :] / sizes[:, np.newaxis]
        covariances[:, second, first] = covariances[:, first, second]
        covariances -= means[:, :, np.newaxis] * means[:, np.newaxis]
        covariances *= np.eye(size) if is_diagonal else 1.0
        return cls(np.log(sizes / sizes.sum()), means, covariances + np.diag(least_variance))

    def _coefficients(self) -> np.ndarray:
        precisions = np.linalg.inv(self.covariances)
        slopes = np.einsum("kde,ke->kd", precisions, self.means)
        log_dets = np.linalg.slogdet(2 * math.pi * self.covariances)[1]
        constants = self.log_weights - (log_dets + (slopes * self.means).sum(axis=1)) / 2
        first, second = _pairs(self.means.shape[1])
        products = precisions[:, first, second] * np.where(first == second, -0.5, -1.0)
        return np.column_stack([constants, slopes, products])

    def of_columns(self, chosen: np.ndarray) -> NormalMixture:
        """Returns the marginal distribution of the columns that a mask or indices select."""
        covariances = self.covariances[:, chosen][:, :, chosen]
        return NormalMixture(self.log_weights, self.means[:, chosen], covariances)

    def joint_log_probs(self, rows: np.ndarray) -> np.ndarray:
        """Returns log p(component, row), [N, K]."""
        return joint_log_probs(self._coefficients(), rows)

    def given(self, is_condition: np.ndarray) -> ConditionalMixture:
        """Conditions the mixture on the columns that the mask `is_condition`, [D], selects."""
        given, other = np.flatnonzero(is_condition), np.flatnonzero(~is_condition)
        pairs = (given, given), (given, other), (other, other)
        of_given, shared, of_other = (self.covariances[:, i[:, np.newaxis], j] for i, j in pairs)
        slopes = np.linalg.solve(of_given, shared)
        means = self.means[:, other] - np.einsum("kc,kcd->kd", self.means[:, given], slopes)
        rest = of_other - np.swapaxes(shared, 1, 2) @ slopes
        parts = self.of_columns(np.append(given, other)), self.of_columns(given)
        joint, conditions = (part._coefficients() for part in parts)
        factors = np.swapaxes(np.linalg.cholesky(rest), 1, 2)
        return ConditionalMixture(self, joint, conditions, means, slopes, factors)


class ConditionalMixture(NamedTuple):
    """p(events | conditions) of a mixture of K normal distributions of C conditions and D events.

    In each component `events = means + conditions @ slopes + latents @ factors`, with normal
    latents, means [K, D], slopes [K, C, D] and upper triangular factors [K, D, D]. `joint` and
    `conditions` are the coefficients of p(conditions, events) and p(conditions) for
    `joint_log_probs`. `mixture` is the joint mixture, with its columns in the original order.
    """

    mixture: NormalMixture
    joint: np.ndarray
    conditions: np.ndarray
    means: np.ndarray
    slopes: np.ndarray
    factors: np.ndarray

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        """Returns the log density of the events of rows given their conditions, [N]."""
        log_joint, _ = _log_sum_exp(joint_log_probs(self.joint, rows))
        return log_joint - self.log_prob_of_conditions(rows)

    def log_prob_of_conditions(self, rows: np.ndarray) -> np.ndarray:
        """Returns the log density of the conditions of rows, [N]."""
        return self._of_conditions(rows)[0] if self.slopes.shape[1] else np.zeros(len(rows))

    def tails(self, rows: np.ndarray) -> np.ndarray:
        """Returns the CDF and the survival function at one-dimensional events, [2, N]."""
        errors = rows[:, -1:] - self.means[:, 0] - rows[:, :-1] @ self.slopes[..., 0].T
        latents, shares = errors / self.factors[:, 0, 0], self._of_conditions(rows)[1]
        return (shares * ndtr(np.stack([latents, -latents]))).sum(axis=-1)

    def mean_of_events(self, conditions: np.ndarray) -> np.ndarray:
        """Returns the mean of events given conditions, [N, D]."""
        shares = self._of_conditions(conditions)[1]
        return shares @ self.means + np.einsum("nk,knd->nd", shares, conditions @ self.slopes)

    def _of_conditions(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns log p(conditions) of rows, [N], and p(component | conditions), [N, K]."""
        conditions = rows[:, : self.slopes.shape[1]]
        log_probs, shares = _log_sum_exp(joint_log_probs(self.conditions, conditions))
        return log_probs, shares.clip(min=1e-300)

    def sample(self, conditions: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """Returns events [N, D] given conditions [N, C] from uniform numbers [N, 1 + D]."""
        components = drawn(self._of_conditions(conditions)[1], uniforms[:, 0])
        events = ndtri(uniforms[:, 1:])
        for i in np.unique(components):
            chosen = components == i
            mean = self.means[i] + conditions[chosen] @ self.slopes[i]
            events[chosen] = mean + events[chosen] @ self.factors[i]
        return events


def joint_log_probs(coefficients: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns log p(component, row), [N, K].

    These log densities are linear in `_features`; `coefficients` are [K, F].
    """
    log_probs = np.empty([len(rows), len(coefficients)], order="F")
    for values, part in _chunks(rows, log_probs):
        part[:] = (coefficients @ _features(values)).T
    return log_probs


def _log_sum_exp(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns log Σ exp over the last axis, [N], and the softmax, [N, K]."""
    largest = values.max(axis=1, keepdims=True)
    terms = np.exp(values - largest)
    sums = terms.sum(axis=1, keepdims=True)
    return (largest + np.log(sums))[:, 0], terms / sums


def _chunks(rows: np.ndarray, *arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields slices of rows and of other arrays, small enough for the cache of one core."""
    num_features = 1 + rows.shape[1] + len(_pairs(rows.shape[1])[0])
    return slices(max(_MIN_CHUNK, _CHUNK_SIZE // num_features), rows, *arrays)


def _features(rows: np.ndarray) -> np.ndarray:
    """Returns quadratic features of rows: ones, columns, and pairwise products, [F, N]."""
    columns = np.ascontiguousarray(rows.T)
    first, second = _pairs(len(columns))
    return np.concatenate([np.ones([1, len(rows)]), columns, columns[first] * columns[second]])


def _clusters(rows: Rows, number: int, seed: int) -> np.ndarray:
    """Assigns rows to clusters with k-means; returns one-hot vectors [N, K].

    For few rows, scikit-learn's `KMeans` takes 100 times as long, because it sets up threads.
    """
    values, weights = rows
    centers, _ = kmeans_plusplus(values, number, sample_weight=weights, random_state=seed)
    for _ in range(_CLUSTERING_STEPS):
        nearest = ((centers**2).sum(axis=1) - 2 * values @ centers.T).argmin(axis=1)
        shares = np.eye(number)[nearest]
        sizes = weights @ shares
        is_used = sizes > 0
        centers[is_used] = ((weights * shares.T) @ values)[is_used] / sizes[is_used, np.newaxis]
    return shares


def fit_normal_mixtures(
    splits: Splits, least_variance: np.ndarray, rng: Any, progress: Progress, starts: Any = None
) -> list[list[ConditionalMixture]]:
    """Selects mixtures by held-out likelihood on the first split, and fits them on all splits.

    `starts` has one affine map per split, from events to latents. With `starts`, the mixtures model
    conditions and latents instead of conditions and events, so the conditional density of events
    can be as narrow as the errors of the map. Without `starts`, the variance of events is larger by
    `_LEAST_CONDITION_VARIANCE` times the squared slopes.
    """
    if not _is_held_out(splits):
        return []
    rows, held_out = splits[0][0].thinned(_MAX_ROWS), splits[0][1]
    num_conditions = rows.values.shape[1] - len(least_variance)
    is_condition = np.arange(rows.values.shape[1]) < num_conditions

    def fit(index: int, number: int, is_diagonal: bool, seed: int) -> ConditionalMixture:
        part, variance = splits[index][0].thinned(_MAX_ROWS), least_variance
        if starts:
            part = part.mapped(starts[index].with_latents)
            variance = least_variance @ starts[index].matrix ** 2
        variances = np.append(np.full(num_conditions, _LEAST_CONDITION_VARIANCE), variance)
        # The peaks at repeated values that a mixture finds depend on the seed. Different seeds for
        # the splits average over the choice of peaks.
        mixture = NormalMixture.fit(part, number, is_diagonal, variances, seed + index)
        if starts:
            mixture = starts[index].mixture_of_events(mixture)
        return mixture.given(is_condition)

    kept = []
    for is_diagonal in (False, True):
        rows_of_component = 4 if is_diagonal else rows.values.shape[1] + 1
        fits, best, num_worse = [], -math.inf, 0
        for number in _NUM_COMPONENTS:
            if number * rows_of_component > rows.number or num_worse == 2:
                break
            options = number, is_diagonal, int(rng.integers(2**31))
            mixture = fit(0, *options)
            score, _ = held_out.mean_and_error(mixture.log_prob(held_out.values))
            kind = "diagonal" if is_diagonal else "full"
            progress(f"mixture with {number} {kind} covariances: {score:.3f} nats per held-out row")
            num_worse = 0 if score > best else num_worse + 1
            best = max(best, score)
            fits.append((score, mixture, options))
        fits.sort(key=lambda each: -each[0])
        for _, mixture, options in fits[:_NUM_KEPT_MIXTURES]:
            kept.append([mixture, *(fit(i, *options) for i in range(1, len(splits)))])
    return kept
