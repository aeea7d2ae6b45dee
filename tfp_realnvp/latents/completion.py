"""Completes images and vectors: samples unknown values given the known values."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from numpy.typing import ArrayLike

from tfp_realnvp import pixels
from tfp_realnvp.bijectors.flow_bijector import surround_with
from tfp_realnvp.distributions import routing
from tfp_realnvp.distributions.clusters import ClusterMixture, flow_of
from tfp_realnvp.internal import validation
from tfp_realnvp.internal.batch_dims import slices
from tfp_realnvp.latents.sampling import stateless_seed

tfd = tfp.distributions

# Variance of logit(u) for uniform u.
_LOGISTIC_VARIANCE = np.pi**2 / 3
# Populations with a larger R-hat, or a larger standard deviation of their log evidence, differ.
_LARGEST_R_HAT, _LARGEST_SPREAD = 1.1, 2.0
# Numbers of flow samples to which a normal distribution is fitted, in total and for each cluster.
_NUM_METRIC_SAMPLES, _NUM_METRIC_SAMPLES_OF_CLUSTER = 1000, 100
# Clusters are drawn in proportion to this power of their evidence. Higher powers can miss the right
# clusters in all populations.
_POWER_OF_EVIDENCE = 0.2
_LOG_OF_ZERO = -1e9
# Share of the particles that remain effective at the next temperature.
_EFFECTIVE_SAMPLE_SIZE = 0.7
_MIN_PARTICLES = 100
_NUM_FINAL_MOVES = 6
# The networks evaluate at most this number of positions (pixels) in one batch.
_MAX_POSITIONS = 2**18


class Completion(NamedTuple):
    """The result of `complete`.

    Attributes:
      samples: samples [num_samples, N, ...] of whole events, including the known values, in the
        dtype of the events; floats for integer vectors.
      r_hat: for each event, the largest R-hat of its unknown values, [N]; 1 if all are known.
      acceptance_rate: for each event, the share of accepted proposals after burn-in, [N].
    """

    samples: np.ndarray
    r_hat: np.ndarray
    acceptance_rate: np.ndarray


def complete(
    flow: tfd.Distribution,
    events: ArrayLike,
    is_known: ArrayLike | None = None,
    *,
    num_samples: int = 400,
    conditional_input: ArrayLike | None = None,
    num_chains: int = 4,
    num_burnin_steps: int = 200,
    num_leapfrog_steps: int = 6,
    seed: int | Sequence[int] = 0,
) -> Completion:
    r"""Samples the unknown values of images or vectors given the known values.

    Chains of Hamiltonian Monte Carlo (Neal 2011, arXiv 1206.1901) sample from the density

    ```
    p(x_unknown | x_known) ∝ p(x_unknown, x_known)           continuous values
    p(x | floor(x_known) = levels) ∝ p(x) on [0, n)^D        integer gray levels 0 … n - 1
    ```

    A known gray level fixes only a unit interval of continuous values, so the chains also sample
    the noise within known levels. Unknown pixels are in [0, n).

    An affine map, estimated from samples of the flow, changes the coordinates of the chains so that
    a normal density would become N(0, I), from which the chains start. During burn-in, dual
    averaging (Hoffman, Gelman 2014) adapts the step size of each event to an acceptance rate of
    75%.

    R-hat (Gelman et al.: Bayesian data analysis, section 11.4) compares the variance between halves
    of chains with the variance within halves. R-hat is 1 for chains that have mixed. Above 1.1,
    samples depend on where the chains started. A `UserWarning` then recommends values of

    *   `num_leapfrog_steps`: π / ε for the step size ε, if this is more than the present number. A
        trajectory of length π is half a period in a standard normal density;
    *   `num_samples`: enough for an R-hat of 1.1, if R-hat² - 1 is inversely proportional to the
        number of samples. More samples do not help chains that are stuck in different modes.

    Each chain makes `num_burnin_steps + num_samples / num_chains` draws. A draw computes on average
    `num_leapfrog_steps / 2` gradients of the log density. Chains mix best with networks that are
    small, smooth, and trained with weight decay.

    #### Example

    Missing values of a table are NaN. The flow of this example is a normal distribution, whose
    conditional mean is 0.8 · 1.5 = 1.2 and whose conditional standard deviation is 0.6:

    >>> import numpy as np, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> from tfp_realnvp import latents
    >>> flow = tfp.distributions.MultivariateNormalTriL([0., 0.], [[1., 0.], [0.8, 0.6]])
    >>> completion = latents.complete(flow, [[1.5, np.nan], [0.3, -0.2]], num_samples=2000)
    >>> missing = completion.samples[:, 0, 1]
    >>> bool(abs(missing.mean() - 1.2) < 0.1), bool(abs(missing.std() - 0.6) < 0.1)
    (True, True)
    >>> low, high = np.quantile(missing, [0.05, 0.95])        # an interval of 90%
    >>> bool((completion.r_hat < 1.05).all())
    True

    Args:
      flow: a distribution over images [H, W, C] or vectors [D], or the `FlowModel` of one.
      events: images [N, H, W, C], integer gray levels or continuous pixel values; or vectors [N,
        D]. Unknown values are ignored. The chains of all events run at once.
      is_known: booleans that broadcast to the shape of the events; a mask of pixels [H, W] needs a
        channel axis, `mask[..., np.newaxis]`. By default, all but NaNs are known.
      num_samples: number of samples of each event, in total over its chains.
      conditional_input: conditions of the events [N, ...], if the distribution takes them.
      num_chains: number of chains of each event.
      num_burnin_steps: number of initial draws, which adapt the step size and are discarded.
      num_leapfrog_steps: largest number of leapfrog steps of a draw.
      seed: one or two integers. Equal seeds give equal samples.

    Warns:
      UserWarning: if R-hat of an event is above 1.1.

    Returns:
      A `Completion`. Means and quantiles of the samples over the first axis estimate the unknown
      values. R-hat is the square root of `tfp.mcmc.potential_scale_reduction`.

    Raises:
      TypeError: if `flow` is not a distribution or `FlowModel`, or `is_known` is not boolean.
      ValueError: if events do not match the model in shape or range, nothing is known or nothing is
        unknown, conditions are not as declared, or known values or log densities are not finite.
    """
    flow = routing.distribution_of(flow, "complete")
    num_samples = validation.count(num_samples, "num_samples", 1, "complete")
    num_chains = validation.count(num_chains, "num_chains", 2, "complete")
    num_burnin_steps = validation.count(num_burnin_steps, "num_burnin_steps", 0, "complete")
    num_leapfrog_steps = validation.count(num_leapfrog_steps, "num_leapfrog_steps", 1, "complete")
    events = np.asarray(events)
    is_known = _known(events, is_known, flow.event_shape)
    is_finite = np.isfinite(events[is_known]).all()
    validation.require(is_finite, "complete: expected finite known values", events[is_known])
    support = _Support(flow, events, is_known)
    when = "for a distribution that takes a condition"
    applies = routing.takes_condition(flow)
    validation.only(conditional_input, "conditional_input", applies, when, "complete")
    conditions = routing.as_conditions(flow, conditional_input, "complete")
    if conditions is not None:
        expected = f"complete: expected one condition for each of {len(events)} events"
        validation.require(len(conditions) == len(events), expected, conditions.shape)
    metric_seed, seed = tfp.random.split_seed(stateless_seed(seed), 2)
    target = _Target(flow, support, conditions, metric_seed)
    num_particles = max(math.ceil(num_samples / num_chains), _MIN_PARTICLES)
    populations = np.tile(np.arange(len(events)), num_chains), num_particles
    rng = np.random.default_rng(seed.numpy().astype(np.uint32))
    result = _anneal(target, *populations, num_burnin_steps, num_leapfrog_steps, rng)
    coordinates, log_evidence, acceptance_rate = result
    x = support.forward_and_log_det(coordinates, populations[0][:, np.newaxis])[0].numpy()
    # Resampling sorts particles by their ancestors.
    x = rng.permutation(x.reshape(num_chains, len(events), num_particles, -1), axis=2)
    x = x.transpose(2, 0, 1, 3)
    reduction = tfp.mcmc.potential_scale_reduction(x).numpy()
    r_hat = np.where(support.is_known, 1.0, np.sqrt(reduction)).max(axis=-1)
    shape = num_chains, len(events)
    _warn_unless_equal(r_hat, log_evidence.reshape(shape).std(axis=0))
    samples = support.as_events(x.reshape(-1, *events.shape)[:num_samples])
    return Completion(samples, r_hat, acceptance_rate.reshape(shape).mean(axis=0))


class _Support:
    """Unconstrained coordinates t of values x: x = t, or x = low + (high - low) sigmoid(t).

    Arrays are [N, D]. Exactly known values x do not depend on their coordinates t.
    """

    def __init__(self, flow: tfd.Distribution, events: np.ndarray, is_known: np.ndarray) -> None:
        self._events, is_image = events, events.ndim == 4
        self._is_gray = is_image and np.issubdtype(events.dtype, np.integer)
        self._num_values = routing.find_num_values(flow) if is_image else None
        if self._num_values is not None:
            pixels.check_gray_levels(events[is_known], "complete", self._num_values)
        dtype = flow.dtype.as_numpy_dtype
        self.is_known = is_known.reshape(len(events), -1)
        self.size = self.is_known.shape[1]
        self._low = np.where(is_known, events, 0).reshape(self.is_known.shape).astype(dtype)
        self._is_bounded = np.where(self.is_known, self._is_gray, self._num_values is not None)
        # Whether x depends on t.
        self.is_free = ~self.is_known | self._is_bounded
        self._width = np.where(self.is_known, 1, self._num_values or 1).astype(dtype)
        # `_metric` represents each gray level by the center of its interval.
        self.centers = self.unbounded(self._low + dtype(0.5) * self._is_gray)

    def forward_and_log_det(self, t: Any, events: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns x [..., D] and the log det [...], up to a constant, given indices of events."""
        low, width = tf.gather(self._low, events), tf.gather(self._width, events)
        is_known = tf.gather(self.is_known, events)
        is_bounded = tf.gather(self._is_bounded, events)
        t = tf.convert_to_tensor(t, low.dtype)
        x = tf.where(is_bounded, low + width * tf.sigmoid(t), tf.where(is_known, low, t))
        fldj = tf.where(is_bounded, -tf.nn.softplus(t) - tf.nn.softplus(-t), 0)
        return x, tf.reduce_sum(fldj, axis=-1)

    def as_events(self, x: np.ndarray) -> np.ndarray:
        """Returns samples [S, N, ...] in the dtype of the events, with the known values."""
        is_integer = np.issubdtype(self._events.dtype, np.integer)
        if self._is_gray:
            limits, n = np.iinfo(self._events.dtype), self._num_values
            x = np.clip(np.floor(x), *((limits.min, limits.max) if n is None else (0, n - 1)))
        if self._is_gray or not is_integer:
            x = x.astype(self._events.dtype)
        return np.where(self.is_known.reshape(self._events.shape), self._events, x)

    def unbounded(self, x: np.ndarray) -> np.ndarray:
        """Returns the coordinates of unknown values [..., D]."""
        if self._num_values is None:
            return x
        # Samples of the flow can lie slightly outside of [0, n), where the logit is undefined.
        share = np.clip(x / self._num_values, 1e-3, 1 - 1e-3)
        return np.log(share) - np.log1p(-share)


def _known(events: np.ndarray, is_known: ArrayLike | None, shape: tf.TensorShape) -> np.ndarray:
    is_shape = shape.is_compatible_with(events.shape[1:]) and events.size > 0
    expected = f"complete: expected events [{', '.join(['N', *map(str, shape)])}]"
    validation.require(is_shape, expected, events.shape)
    is_known = np.asarray(~np.isnan(events) if is_known is None else is_known)
    expected = "complete: expected booleans as is_known"
    validation.require(is_known.dtype == bool, expected, is_known.dtype, TypeError)
    try:
        is_known = np.broadcast_to(is_known, events.shape)
    except ValueError:
        raise ValueError(
            f"complete: expected is_known that broadcasts to the shape of the events, "
            f"{events.shape}, got {is_known.shape}"
            + (
                ": pass a mask of pixels as `is_known[..., np.newaxis]`."
                if events.ndim == 4
                else "."
            )
        ) from None
    if is_known.all() or not is_known.any():
        raise ValueError(
            "complete: expected known and unknown values, got only "
            f"{'known' if is_known.all() else 'unknown'} ones: unknown values are NaN, or False in "
            "is_known; `distribution.sample` returns samples of whole events."
        )
    return is_known


class _Particles(NamedTuple):
    """R populations of P particles.

    Coordinates z and gradients are [R, P, D]; clusters and log ratios are [R, P].
    """

    coordinates: np.ndarray
    clusters: np.ndarray
    log_ratios: np.ndarray
    gradients: np.ndarray


class _Target:
    """The density p(z, k) of the whitened coordinates z and the cluster k of each event.

    Particles start from N(z; 0, I) h(k). If the flow were a normal distribution for each cluster,
    with the same covariance, N(z; 0, I) would be the target of z given k. Without a
    `ClusterMixture`, k is 0.
    """

    def __init__(
        self,
        flow: tfd.Distribution,
        support: _Support,
        conditions: tf.Tensor | None,
        seed: tf.Tensor,
    ) -> None:
        self._support, self._flow, self._conditions = support, flow_of(flow), conditions
        self.is_free = support.is_free
        self._is_mixture, num_events = isinstance(flow, ClusterMixture), len(support.is_known)
        log_weights = np.zeros([num_events, 1])
        if self._is_mixture:
            clusters = np.arange(flow.clusters.num_clusters)
            log_weights = np.tile(flow.clusters.log_frequencies(clusters), [num_events, 1])
            if conditions is not None:
                classes = clusters // flow.clusters.num_per_class
                log_weights[classes != conditions.numpy()[:, np.newaxis]] = -np.inf
        # Weights of 0 would make differences of their logarithms NaN.
        log_weights = np.maximum(log_weights, _LOG_OF_ZERO)
        self.mean, self.scale, log_evidence = self._fit(log_weights.shape[1], seed)
        log_start = _POWER_OF_EVIDENCE * (log_weights + log_evidence)
        self.log_start = log_start - np.logaddexp.reduce(log_start, axis=1, keepdims=True)
        self._log_weights = log_weights - self.log_start
        indices = tf.TensorSpec([None], tf.int32)
        self._log_prob_and_gradient = tf.function(
            lambda t, *indices: tfp.math.value_and_gradient(
                lambda t: self._log_prob(t, *indices), t
            ),
            [tf.TensorSpec([None, support.size], flow.dtype), indices, indices],
            autograph=False,
        )

    def _log_prob(self, t: tf.Tensor, events: tf.Tensor, clusters: tf.Tensor) -> tf.Tensor:
        x, fldj = self._support.forward_and_log_det(t, events)
        condition = clusters if self._is_mixture else self._conditions
        if condition is self._conditions is not None:
            condition = tf.gather(condition, events)
        with surround_with(condition=condition):
            return self._flow.log_prob(tf.reshape(x, [-1, *self._flow.event_shape])) + fldj

    def _fit(self, num_clusters: int, seed: tf.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Fits a normal distribution for each cluster to the coordinates t of flow samples.

        With the precision matrix P of all coordinates, the precision of the unknown coordinates
        given the known ones is P_uu = L Lᵀ, and their mean is m_u - P_uu⁻¹ P_uk (t_k - m_k).

        Returns:
          These means [N, K, D]; L⁻ᵀ [N, D, D], or [1, D, D] if the same values are unknown in all
          events; and the log density of the known coordinates up to a constant, [N, K].
        """
        support, size = self._support, self._support.size
        number = max(_NUM_METRIC_SAMPLES, 2 * size, _NUM_METRIC_SAMPLES_OF_CLUSTER * num_clusters)
        clusters, conditions = np.arange(number) % num_clusters, self._conditions
        if self._is_mixture:
            conditions = tf.constant(clusters, tf.int32)
        elif conditions is not None:
            conditions = tf.gather(conditions, np.arange(number) % len(support.is_known))
        with surround_with(condition=conditions):
            x = self._flow.sample(number, seed=seed)
        t = support.unbounded(x.numpy().reshape(number, size)).astype(np.float64)
        is_finite = np.isfinite(t).all(axis=1)
        t, clusters = t[is_finite], clusters[is_finite]
        # One more sample, the mean of all, counts for each cluster.
        sums = np.stack([t[clusters == k].sum(axis=0) for k in range(num_clusters)]) + t.mean(
            axis=0
        )
        means = sums / (np.bincount(clusters, minlength=num_clusters) + 1)[:, np.newaxis]
        covariance = np.cov(t - means[clusters], rowvar=False).reshape(size, size)
        # Shrinkage to the diagonal keeps the inverse stable if samples are few or nearly collinear.
        share = size / (size + 10 * number)
        covariance += share * (np.diag(np.diag(covariance)) - covariance)
        precision = np.linalg.inv(covariance)
        is_known = support.is_known
        rows = is_known[:1] if (is_known == is_known[0]).all() else is_known
        is_unknown_pair = ~rows[..., :, np.newaxis] & ~rows[..., np.newaxis, :]
        rest = np.eye(size) * np.where(rows, 1 / _LOGISTIC_VARIANCE, 0)[..., np.newaxis, :]
        factor = np.linalg.cholesky(np.where(is_unknown_pair, precision, rest))
        scale = np.linalg.inv(factor).swapaxes(-1, -2)
        is_known = is_known[:, np.newaxis]
        offset = np.where(is_known, support.centers[:, np.newaxis] - means, 0)
        pull = -offset @ precision
        whitened = np.where(is_known, 0, pull) @ scale
        mean = np.where(is_known, 0, means + whitened @ scale.swapaxes(-1, -2))
        log_evidence = np.sum(offset * pull, axis=-1) + np.sum(whitened**2, axis=-1)
        return mean, scale, 0.5 * log_evidence

    def unbounded(
        self, events: np.ndarray, coordinates: np.ndarray, clusters: np.ndarray
    ) -> np.ndarray:
        """Returns the coordinates t of `_Support`, [R, P, D]."""
        scale = self.scale[events if len(self.scale) > 1 else [0]]
        return self.mean[events[:, np.newaxis], clusters] + coordinates @ scale.swapaxes(-1, -2)

    def particles(
        self, events: np.ndarray, coordinates: np.ndarray, clusters: np.ndarray
    ) -> _Particles:
        """Returns particles with log p(z, k) - log N(z; 0, I) h(k), up to a constant."""
        t = self.unbounded(events, coordinates, clusters)
        rows = t.reshape(-1, self._support.size), np.repeat(events, t.shape[1]), clusters.ravel()
        types = self._flow.dtype.as_numpy_dtype, np.int32, np.int32
        rows = [values.astype(dtype) for values, dtype in zip(rows, types, strict=True)]
        num_positions = max(1, int(np.prod(self._flow.event_shape[:-1])))
        parts = slices(max(1, _MAX_POSITIONS // num_positions), *rows)
        parts = zip(*(self._log_prob_and_gradient(*part) for part in parts), strict=True)
        log_probs, gradients = (np.concatenate(part).astype(np.float64) for part in parts)
        scale = self.scale[events if len(self.scale) > 1 else [0]]
        log_ratios = log_probs.reshape(clusters.shape) + np.sum(coordinates**2, axis=-1) / 2
        log_ratios += self._log_weights[events[:, np.newaxis], clusters]
        log_ratios = np.where(np.isfinite(log_ratios), log_ratios, -np.inf)
        gradients = gradients.reshape(t.shape) @ scale + coordinates
        return _Particles(coordinates, clusters, log_ratios, gradients)


def _anneal(
    target: _Target,
    events: np.ndarray,
    num_particles: int,
    num_temperatures: int,
    num_leapfrog_steps: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the coordinates t of the particles, log evidence [R], and acceptance rates [R].

    Population r has particles of event `events[r]`. At an inverse temperature β, the density is
    proportional to N(z; 0, I) h(k) exp(β log_ratio). β increases from 0 to 1.
    """

    # `tfp.experimental.mcmc.sample_sequential_monte_carlo` moves only continuous states, so it
    # cannot jump between clusters. With a seed, it draws equal random numbers at each temperature.
    def even() -> np.ndarray:
        return (np.arange(num_particles) + rng.uniform(size=[len(rows), 1])) / num_particles

    is_free = target.is_free[events][:, np.newaxis]
    rows = np.arange(len(events))
    clusters = _quantiles(target.log_start[events], even())
    shape = *clusters.shape, is_free.shape[-1]
    state = target.particles(events, rng.normal(size=shape) * is_free, clusters)
    expected = (
        "complete: expected finite known values, and finite log densities where particles start"
    )
    is_finite = bool(np.isfinite(state.log_ratios).any(axis=1).all())
    validation.require(is_finite, expected, state.log_ratios)
    beta, log_evidence, acceptance = np.zeros([3, len(events)])
    step_sizes, num_left = np.full(len(events), 0.4), np.full(len(events), _NUM_FINAL_MOVES)
    stage = 0
    while len(rows := np.flatnonzero(num_left)):
        part, events_of_part = _Particles(*(values[rows] for values in state)), events[rows]
        before, after = beta[rows], np.ones(len(rows))
        if stage < num_temperatures:
            after = _next_temperature(before, part.log_ratios)
        log_weights = (after - before)[:, np.newaxis] * part.log_ratios
        log_evidence[rows] += np.logaddexp.reduce(log_weights, axis=1) - np.log(num_particles)
        kept = _quantiles(log_weights, even())
        part = _Particles(*(values[np.arange(len(rows))[:, np.newaxis], kept] for values in part))
        if target.log_start.shape[1] > 1:
            uniform = rng.uniform(size=part.clusters.shape)
            clusters = _quantiles(target.log_start[events_of_part], uniform)
            jumped = target.particles(events_of_part, part.coordinates, clusters)
            part, _ = _accept(
                part, jumped, after[:, np.newaxis] * (jumped.log_ratios - part.log_ratios), rng
            )
        num_steps = rng.integers(num_leapfrog_steps // 2 + 1, num_leapfrog_steps + 1)
        part, rates = _move(target, events_of_part, part, after, step_sizes[rows], num_steps, rng)
        step_sizes[rows] *= np.exp(0.5 * (rates - 0.75))
        for values, new_values in zip(state, part, strict=True):
            values[rows] = new_values
        is_final = before == 1
        acceptance[rows] += is_final * rates / _NUM_FINAL_MOVES
        num_left[rows] -= is_final
        beta[rows], stage = after, stage + 1
    t = target.unbounded(events, state.coordinates, state.clusters)
    return t, log_evidence, acceptance


def _quantiles(log_weights: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Returns the indices [R, P] at `uniform`, [R, P], of distributions with weights [R, K]."""
    cumulative = np.cumsum(np.exp(log_weights - log_weights.max(axis=1, keepdims=True)), axis=1)
    pairs = zip(cumulative / cumulative[:, -1:], uniform, strict=True)
    return np.stack([np.searchsorted(row, points) for row, points in pairs])


def _next_temperature(beta: np.ndarray, log_ratios: np.ndarray) -> np.ndarray:
    """Returns the largest β up to 1 at which the effective sample size is at least 70%."""

    def is_too_large(betas: np.ndarray) -> np.ndarray:
        log_weights = (betas - beta)[:, np.newaxis] * log_ratios
        log_sizes = 2 * np.logaddexp.reduce(log_weights, axis=1)
        log_sizes -= np.logaddexp.reduce(2 * log_weights, axis=1)
        return log_sizes < np.log(_EFFECTIVE_SAMPLE_SIZE * log_ratios.shape[1])

    low, high = beta, np.ones_like(beta)
    low = np.where(is_too_large(high), low, high)
    for _ in range(30):
        middle = (low + high) / 2
        is_high = is_too_large(middle)
        low, high = np.where(is_high, low, middle), np.where(is_high, middle, high)
    # The upper bound is always larger than the previous β.
    return high


def _accept(
    old: _Particles, new: _Particles, log_ratio: np.ndarray, rng: np.random.Generator
) -> tuple[_Particles, np.ndarray]:
    """Accepts or rejects; returns the particles and the probabilities of acceptance, [R, P]."""
    probability = np.exp(np.minimum(np.nan_to_num(log_ratio, nan=-np.inf), 0))
    is_new = rng.uniform(size=probability.shape) < probability
    values = [
        np.where(is_new if a.ndim == 2 else is_new[..., np.newaxis], b, a)
        for a, b in zip(old, new, strict=True)
    ]
    return _Particles(*values), probability


def _move(
    target: _Target,
    events: np.ndarray,
    old: _Particles,
    beta: np.ndarray,
    step_sizes: np.ndarray,
    num_steps: int,
    rng: np.random.Generator,
) -> tuple[_Particles, np.ndarray]:
    """Returns the particles after a step of Hamiltonian Monte Carlo, and acceptance rates, [R]."""
    beta, step_sizes = beta[:, np.newaxis, np.newaxis], step_sizes[:, np.newaxis, np.newaxis]

    def kick(new: _Particles) -> np.ndarray:
        force = beta * new.gradients - new.coordinates
        return 0.5 * step_sizes * np.where(target.is_free[events][:, np.newaxis], force, 0)

    def log_prob(new: _Particles, momentum: np.ndarray) -> np.ndarray:
        quadratic = np.sum(new.coordinates**2 + momentum**2, axis=-1)
        return beta[..., 0] * new.log_ratios - 0.5 * quadratic

    start = rng.normal(size=old.coordinates.shape) * target.is_free[events][:, np.newaxis]
    new, momentum = old, start
    for _ in range(num_steps):
        momentum = momentum + kick(new)
        new = target.particles(events, new.coordinates + step_sizes * momentum, new.clusters)
        momentum = momentum + kick(new)
    part, probability = _accept(old, new, log_prob(new, momentum) - log_prob(old, start), rng)
    return part, probability.mean(axis=1)


def _warn_unless_equal(r_hat: np.ndarray, spread: np.ndarray) -> None:
    is_equal = (r_hat <= _LARGEST_R_HAT) & (spread <= _LARGEST_SPREAD)
    if is_equal.all():
        return
    warnings.warn(
        f"complete: the populations of {np.count_nonzero(~is_equal)} of {len(is_equal)} events "
        f"differ: R-hat is up to {r_hat.max():.2f}, and should be at most {_LARGEST_R_HAT}; the "
        f"log evidence of an event differs by up to {spread.max():.1f}, and should differ by at "
        f"most {_LARGEST_SPREAD} (standard deviation over populations). Each sample of these "
        "events is a plausible completion, but shares of modes, means and intervals are not "
        "reliable. More samples will not help.",
        stacklevel=3,
    )
