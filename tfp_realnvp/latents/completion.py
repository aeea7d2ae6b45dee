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
from tfp_realnvp.distributions.clusters import flow_of
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
# Clusters are drawn in proportion to this power of their evidence. With higher powers, all
# populations can miss the right clusters.
_POWER_OF_EVIDENCE = 0.2
_LOG_OF_ZERO = -1e9
# Share of the particles that remain effective at the next temperature.
_EFFECTIVE_SAMPLE_SIZE = 0.8
# Smaller populations lose modes.
_MIN_PARTICLES, _NUM_FINAL_MOVES, _ACCEPTANCE_RATE = 160, 4, 0.75
# The networks evaluate at most this number of particles, and of positions (pixels), in one batch.
_MAX_ROWS, _MAX_POSITIONS = 2**12, 2**18


class Completion(NamedTuple):
    """The result of `complete`.

    Attributes:
      samples: samples [num_samples, N, ...] of whole events, including the known values, in the
        dtype of the events; floats for integer vectors.
      r_hat: for each event, the largest R-hat of its unknown values, [N]; 1 if all are known.
      acceptance_rate: for each event, the share of accepted proposals of Hamiltonian Monte Carlo at
        the last temperature, [N].
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

    Annealed sequential Monte Carlo (Del Moral, Doucet, Jasra 2006, doi
    10.1111/j.1467-9868.2006.00553.x) samples from the density

    ```
    p(x_unknown | x_known) ∝ p(x_unknown, x_known)           continuous values
    p(x | floor(x_known) = levels) ∝ p(x) on [0, n)^D        integer gray levels 0 … n - 1
    ```

    A known gray level fixes only a unit interval of continuous values, so the noise within known
    levels is sampled, too. Unknown pixels are in [0, n).

    Each event has `num_chains` populations of particles. A particle starts from the conditional
    distribution of a normal distribution that is fitted to samples of the flow, with a mean for
    each cluster of a `ClusterMixture`. From there, temperatures lead to the density of the flow. At
    each temperature, particles are resampled; their clusters jump; and a step of Hamiltonian Monte
    Carlo (Neal 2011, arXiv 1206.1901) moves each particle, with larger steps in coordinates in
    which the population has a larger standard deviation.

    Populations are independent, so they differ if each finds other modes. R-hat (Gelman et al.:
    Bayesian data analysis, section 11.4) compares the variance between populations with the
    variance within them, and is 1 if the populations are equal. Each population also estimates the
    evidence of the known values. If R-hat is above 1.1, or the standard deviation of the log
    evidence is above 2, a `UserWarning` says for how many events. Each sample of these events is
    still a plausible completion. Without a warning, all populations can miss the same mode.

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
      events: images [N, H, W, C], gray levels (whole numbers of any dtype) or continuous pixel
        values; or vectors [N, D]. Unknown values are ignored. All events are sampled at once.
      is_known: booleans that broadcast to the shape of the events; a mask of pixels [H, W] needs a
        channel axis, `mask[..., np.newaxis]`. By default, all but NaNs are known. Masked
        elements of a `np.ma.MaskedArray` are unknown.
      num_samples: number of samples of each event, in total over its populations. A population has
        `num_samples / num_chains` particles, but at least 160.
      conditional_input: conditions of the events [N, ...], if the distribution takes them.
      num_chains: number of populations of each event, at least 2.
      num_burnin_steps: largest number of temperatures before the last one. They are chosen so that
        80% of the particles remain effective from one temperature to the next.
      num_leapfrog_steps: largest number of leapfrog steps of Hamiltonian Monte Carlo. Each step
        computes the gradient of the log density of all particles.
      seed: one or two integers. Equal seeds give equal samples.

    Warns:
      UserWarning: if the populations of an event differ.

    Returns:
      A `Completion`. Means and quantiles of the samples over the first axis estimate the unknown
      values. R-hat is the square root of `tfp.mcmc.potential_scale_reduction`.

    Raises:
      TypeError: if `flow` is not a distribution or `FlowModel`, or `is_known` is not boolean.
      ValueError: if events do not match the model in shape or range, nothing is known or nothing is
        unknown, conditions are not as declared, a number is too small, or known values or log
        densities are not finite.
    """
    dequantize = getattr(flow, "dequantize", True)
    flow = routing.distribution_of(flow, "complete")
    routing.check_context(routing.takes_condition(flow), "complete", conditional_input)
    num_samples = validation.count(num_samples, "num_samples", 1, "complete")
    num_chains = validation.count(num_chains, "num_chains", 2, "complete")
    num_burnin_steps = validation.count(num_burnin_steps, "num_burnin_steps", 0, "complete")
    num_leapfrog_steps = validation.count(num_leapfrog_steps, "num_leapfrog_steps", 1, "complete")
    mask = np.ma.getmaskarray(np.ma.asarray(events))
    events = np.asarray(events)
    expected = "complete: expected events of real numbers"
    validation.require(events.dtype.kind in "biuf", expected, events.dtype)
    is_known = _known(events, is_known, mask, flow.event_shape)
    is_finite = np.isfinite(events[is_known]).all()
    validation.require(is_finite, "complete: expected finite known values", events[is_known])
    support = _Support(flow, events, is_known, dequantize)
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
    indices, rng = np.arange(len(events)), np.random.default_rng(seed.numpy().astype(np.uint32))
    options = num_particles, num_burnin_steps, num_leapfrog_steps, rng
    x, *diagnostics = _anneal(target, np.tile(indices, num_chains), *options)
    log_evidence, rates = (values.reshape(num_chains, -1) for values in diagnostics)
    # Resampling sorts particles by their ancestors.
    x = rng.permutation(x, axis=1).reshape(num_chains, len(events), num_particles, -1)
    x = x.transpose(2, 0, 1, 3)
    reduction = tfp.mcmc.potential_scale_reduction(x).numpy()
    reduction = np.nan_to_num(reduction, nan=np.inf, posinf=np.inf)  # particles that are all equal
    r_hat = np.where(support.is_known, 1.0, np.sqrt(reduction)).max(axis=-1)
    _warn_unless_equal(r_hat, log_evidence.std(axis=0))
    samples = support.as_events(x.reshape(-1, *events.shape)[:num_samples])
    return Completion(samples, r_hat, rates.mean(axis=0))


class _Support:
    """Unconstrained coordinates t of values x: x = t, or x = low + (high - low) sigmoid(t).

    Arrays are [N, D]. Exactly known values x do not depend on their coordinates t.
    """

    def __init__(
        self, flow: tfd.Distribution, events: np.ndarray, is_known: np.ndarray, dequantize: bool
    ) -> None:
        self._events, self.event_shape, is_image = events, events.shape[1:], events.ndim == 4
        self._is_gray = is_image and np.issubdtype(events.dtype, np.integer)
        self._num_values = routing.find_num_values(flow) if is_image else None
        if self._num_values is not None:
            self._is_gray |= dequantize and bool(pixels.are_whole(events[is_known]))
            rule = pixels.check_gray_levels if self._is_gray else pixels.check_continuous
            rule(events[is_known], "complete", self._num_values)
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

    def forward_and_log_det(self, t: tf.Tensor, events: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns x [B, D] and the log dets [B], up to a constant, for indices of events, [B]."""
        arrays = self._low, self._width, self.is_known, self._is_bounded
        low, width, is_known, is_bounded = (tf.gather(array, events) for array in arrays)
        x = tf.where(is_bounded, low + width * tf.sigmoid(t), tf.where(is_known, low, t))
        fldj = tf.where(is_bounded, -tf.nn.softplus(t) - tf.nn.softplus(-t), 0)
        return x, tf.reduce_sum(fldj, axis=-1)

    def as_events(self, x: np.ndarray) -> np.ndarray:
        """Returns samples [S, N, ...] in the dtype of the events, with the known values."""
        is_integer = np.issubdtype(self._events.dtype, np.integer)
        if self._is_gray:
            n, dtype = self._num_values, self._events.dtype
            limits = (np.iinfo(dtype).min, np.iinfo(dtype).max) if n is None else (0, n - 1)
            x = np.clip(np.floor(x), *limits)
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


def _known(
    events: np.ndarray, is_known: ArrayLike | None, mask: np.ndarray, shape: tf.TensorShape
) -> np.ndarray:
    is_shape = shape.is_compatible_with(events.shape[1:]) and events.size > 0
    expected = f"complete: expected events [{', '.join(['N', *map(str, shape)])}]"
    validation.require(is_shape, expected, events.shape)
    is_known = np.asarray(~np.isnan(events) if is_known is None else is_known)
    expected = "complete: expected booleans as is_known"
    validation.require(is_known.dtype == bool, expected, is_known.dtype, TypeError)
    try:
        is_known = np.broadcast_to(is_known, events.shape)
    except ValueError:
        advice = ": pass a mask of pixels as `is_known[..., np.newaxis]`" * (events.ndim == 4)
        raise ValueError(
            "complete: expected is_known that broadcasts to the shape of the events, "
            f"{events.shape}, got {is_known.shape}{advice}."
        ) from None
    is_known = is_known & ~mask
    if is_known.all() or not is_known.any():
        raise ValueError(
            "complete: expected known and unknown values, got only "
            f"{'known' if is_known.all() else 'unknown'} ones: unknown values are NaN, or False in "
            "is_known; `distribution.sample` returns samples of whole events."
        )
    return is_known


class _Particles(NamedTuple):
    """R populations of P particles; clusters and log ratios are [R, P], others are [R, P, D]."""

    coordinates: np.ndarray
    clusters: np.ndarray
    values: np.ndarray
    log_ratios: np.ndarray
    gradients: np.ndarray


class _Target:
    """The log ratio of the density p(z, k) to the density N(z; 0, I) h(k) of the first particles.

    Whitened coordinates z are N(0, I) given the cluster k if the flow is a normal distribution for
    each cluster, with the same covariance. Without a `ClusterMixture`, k is 0. `log_start` is log
    h, [N, K].
    """

    def __init__(
        self, flow: tfd.Distribution, support: _Support, conditions: Any, seed: tf.Tensor
    ) -> None:
        self.support, self._flow, self._conditions = support, flow_of(flow), conditions
        self._is_mixture, log_weights = False, np.zeros([len(support.is_known), 1])
        if self._flow is not flow:
            clusters, per_class = np.arange(flow.clusters.num_clusters), flow.clusters.num_per_class
            self._is_mixture, self._conditions = True, tf.constant(clusters, tf.int32)
            log_weights = log_weights + flow.clusters.log_frequencies(clusters).numpy()
            if conditions is not None:
                log_weights[clusters // per_class != conditions.numpy()[:, np.newaxis]] = -np.inf
        # Weights of 0 would make differences of their logarithms NaN.
        log_weights = np.maximum(log_weights, _LOG_OF_ZERO)
        means, precision = self._fit(log_weights.shape[1], seed)
        mean, scale, log_evidence = _conditional(support, means, precision)
        log_start = _POWER_OF_EVIDENCE * (log_weights + log_evidence)
        self.log_start = log_start - np.logaddexp.reduce(log_start, axis=1, keepdims=True)
        arrays = mean, scale, log_weights - self.log_start
        self._mean, self._scale, self._log_weights = (tf.constant(a, flow.dtype) for a in arrays)
        indices = tf.TensorSpec([None], tf.int32)
        signature = [tf.TensorSpec([None, support.size], flow.dtype), indices, indices]
        self._graph = tf.function(self._evaluate, signature, autograph=False)

    def _fit(self, num_clusters: int, seed: tf.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Returns means [K, D] and precision [D, D] of the coordinates t of flow samples."""
        size, conditions = self.support.size, self._conditions
        number = max(_NUM_METRIC_SAMPLES, 2 * size, _NUM_METRIC_SAMPLES_OF_CLUSTER * num_clusters)
        if conditions is not None:
            conditions = tf.gather(conditions, np.arange(number) % len(conditions))
        with surround_with(condition=conditions):
            x = self._flow.sample(number, seed=seed)
        t = self.support.unbounded(x.numpy().reshape(number, size)).astype(np.float64)
        is_finite = np.isfinite(t).all(axis=1)
        t, clusters = t[is_finite], np.arange(number)[is_finite] % num_clusters
        # The mean of all samples counts as one more sample of each cluster.
        indicators = clusters == np.arange(num_clusters)[:, np.newaxis]
        means = (indicators @ t + t.mean(axis=0)) / (indicators.sum(axis=1, keepdims=True) + 1)
        covariance = np.cov(t - means[clusters], rowvar=False).reshape(size, size)
        # Shrinkage to the diagonal keeps the inverse stable if samples are few or nearly collinear.
        share = size / (size + 10 * number)
        covariance += share * (np.diag(np.diag(covariance)) - covariance)
        return means, np.linalg.inv(covariance)

    def _evaluate(self, z: tf.Tensor, events: tf.Tensor, clusters: tf.Tensor) -> list[tf.Tensor]:
        """Returns values [B, D], log ratios [B] up to a constant, and gradients [B, D]."""
        pairs = tf.stack([events, clusters], axis=-1)
        condition = self._conditions
        if condition is not None:
            condition = tf.gather(condition, clusters if self._is_mixture else events)
        with tf.GradientTape() as tape:
            tape.watch(z)
            if len(self._scale) == 1:
                deviations = tf.matmul(z, self._scale[0], transpose_b=True)
            else:
                deviations = tf.linalg.matvec(tf.gather(self._scale, events), z)
            t = tf.gather_nd(self._mean, pairs) + deviations
            x, fldj = self.support.forward_and_log_det(t, events)
            with surround_with(condition=condition):
                log_probs = self._flow.log_prob(tf.reshape(x, [-1, *self.support.event_shape]))
            log_ratios = log_probs + fldj + 0.5 * tf.reduce_sum(z**2, axis=-1)
        gradients = tape.gradient(log_ratios, z)
        return [x, log_ratios + tf.gather_nd(self._log_weights, pairs), gradients]

    def particles(self, events: np.ndarray, z: np.ndarray, clusters: np.ndarray) -> _Particles:
        """Returns particles of populations of these events, [R]."""
        rows = z.reshape(-1, z.shape[-1]), np.repeat(events, z.shape[1]), clusters.reshape(-1)
        types = self._flow.dtype, tf.int32, tf.int32
        rows = [tf.cast(values, dtype) for values, dtype in zip(rows, types, strict=True)]
        size = _MAX_POSITIONS // math.prod(self.support.event_shape[:-1])
        parts = [self._graph(*part) for part in slices(min(_MAX_ROWS, max(1, size)), *rows)]
        x, log_ratios, gradients = (np.concatenate(p) for p in zip(*parts, strict=True))
        log_ratios = log_ratios.reshape(clusters.shape).astype(np.float64)
        log_ratios[~np.isfinite(log_ratios)] = -np.inf
        x, gradients = x.reshape(z.shape), gradients.reshape(z.shape)
        return _Particles(z, clusters, x, log_ratios, gradients)


def _conditional(
    support: _Support, means: np.ndarray, precision: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Conditions normal distributions on the known coordinates.

    With the precision matrix P of all coordinates, the precision of the unknown coordinates given
    the known ones is P_uu = L Lᵀ, and their mean is m_u - P_uu⁻¹ P_uk (t_k - m_k).

    Returns:
      These means [N, K, D]; L⁻ᵀ [N, D, D], or [1, D, D] if the same values are unknown in all
      events; and the log density of the known coordinates up to a constant, [N, K].
    """
    is_known, size = support.is_known, support.size
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


def _anneal(
    target: _Target,
    events: np.ndarray,
    num_particles: int,
    num_temperatures: int,
    num_leapfrog_steps: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Moves particles to the target by annealed sequential Monte Carlo.

    Population r samples event `events[r]`. At the inverse temperature β, which rises from 0 to 1,
    its density is proportional to N(z; 0, I) h(k) exp(β log_ratio).

    Returns:
      Values of the particles, [R, P, D]; the log evidence up to a constant of each event, [R]; and
      the acceptance rates at β = 1, [R].
    """
    # `tfp.experimental.mcmc.sample_sequential_monte_carlo` cannot let particles jump between
    # clusters. Given a seed, it draws the same random numbers at each temperature.
    num_populations, size = len(events), target.support.size
    is_free, log_start = target.support.is_free[events][:, np.newaxis], target.log_start[events]

    def even() -> np.ndarray:
        return (np.arange(num_particles) + rng.uniform(size=[len(rows), 1])) / num_particles

    # The populations that still move.
    rows, step = np.arange(num_populations), 0
    z = rng.normal(size=[num_populations, num_particles, size]) * is_free
    state = target.particles(events, z, _quantiles(log_start, even()))
    is_valid = bool(np.isfinite(state.log_ratios).any(axis=1).all())
    expected = "complete: expected finite log densities where particles start"
    validation.require(is_valid, expected, state.log_ratios)
    values, (log_evidence, last_rates) = np.empty_like(state.values), np.zeros([2, num_populations])
    beta, step_sizes = np.zeros([num_populations, 1]), np.full([num_populations, 1, 1], 0.4)
    num_left = np.full(num_populations, _NUM_FINAL_MOVES)
    while rows.size:
        num_left, before = num_left - (beta[:, 0] == 1), beta
        is_last, step = step >= num_temperatures, step + 1
        beta = np.ones_like(beta) if is_last else _next_temperature(beta, state.log_ratios)
        log_weights = (beta - before) * state.log_ratios
        # The mean of the weights does not depend on the number of temperatures, unlike their sum.
        log_evidence[rows] += np.logaddexp.reduce(log_weights, axis=1) - np.log(num_particles)
        kept = np.arange(len(rows))[:, np.newaxis], _quantiles(log_weights, even())
        state = _Particles(*(array[kept] for array in state))
        if log_start.shape[1] > 1:
            clusters = _quantiles(log_start[rows], rng.uniform(size=state.clusters.shape))
            new = target.particles(events[rows], state.coordinates, clusters)
            state, _ = _accept(state, new, beta * (new.log_ratios - state.log_ratios), rng)
        # Hamiltonian Monte Carlo, with a random number of leapfrog steps. The step size of a
        # coordinate grows with its standard deviation, and is not 0 if all particles are equal.
        scales = np.sqrt(0.9 * state.coordinates.var(axis=1, keepdims=True) + 0.1)
        steps = step_sizes * scales * is_free[rows]
        new, momentum = state, rng.normal(size=state.values.shape)
        log_ratios = -_log_prob(new, momentum, beta)
        for _ in range(rng.integers(num_leapfrog_steps // 2 + 1, num_leapfrog_steps + 1)):
            momentum = momentum + 0.5 * steps * _force(new, beta)
            z = new.coordinates + steps * momentum
            new = target.particles(events[rows], z, new.clusters)
            momentum = momentum + 0.5 * steps * _force(new, beta)
        log_ratios += _log_prob(new, momentum, beta)
        state, rates = _accept(state, new, log_ratios, rng)
        step_sizes = (
            step_sizes * np.exp(0.5 * (rates - _ACCEPTANCE_RATE))[:, np.newaxis, np.newaxis]
        )
        last_rates[rows] += (num_left < _NUM_FINAL_MOVES) * rates / _NUM_FINAL_MOVES
        is_left = num_left > 0
        values[rows[~is_left]] = state.values[~is_left]
        state = _Particles(*(array[is_left] for array in state))
        beta, step_sizes, num_left, rows = (
            array[is_left] for array in (beta, step_sizes, num_left, rows)
        )
    return values, log_evidence, last_rates


def _force(particles: _Particles, beta: np.ndarray) -> np.ndarray:
    return beta[..., np.newaxis] * particles.gradients - particles.coordinates


def _log_prob(particles: _Particles, momentum: np.ndarray, beta: np.ndarray) -> np.ndarray:
    energy = 0.5 * np.sum(particles.coordinates**2 + momentum**2, axis=-1)
    return beta * particles.log_ratios - energy


def _accept(
    old: _Particles, new: _Particles, log_ratios: np.ndarray, rng: np.random.Generator
) -> tuple[_Particles, np.ndarray]:
    """Accepts or rejects new particles; returns the particles and acceptance rates, [R]."""
    probabilities = np.exp(np.minimum(np.nan_to_num(log_ratios, nan=-np.inf), 0))
    is_new = rng.uniform(size=probabilities.shape) < probabilities
    pairs = zip(old, new, strict=True)
    values = [np.where(is_new if a.ndim == 2 else is_new[..., np.newaxis], b, a) for a, b in pairs]
    return _Particles(*values), probabilities.mean(axis=1)


def _quantiles(log_weights: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Returns the indices [R, P] at `uniform`, [R, P], of distributions with weights [R, K]."""
    cumulative = np.cumsum(np.exp(log_weights - log_weights.max(axis=1, keepdims=True)), axis=1)
    pairs = zip(cumulative / cumulative[:, -1:], uniform, strict=True)
    return np.stack([np.searchsorted(row, points) for row, points in pairs])


def _next_temperature(beta: np.ndarray, log_ratios: np.ndarray) -> np.ndarray:
    """Returns the next inverse temperature of each population, [R, 1]; the last one is 1."""
    least = np.log(_EFFECTIVE_SAMPLE_SIZE * log_ratios.shape[1])

    def is_too_large(betas: np.ndarray) -> np.ndarray:
        log_weights = (betas - beta) * log_ratios
        one, two = (np.logaddexp.reduce(k * log_weights, axis=1, keepdims=True) for k in (1, 2))
        return 2 * one - two < least

    high = np.ones_like(beta)
    low = np.where(is_too_large(high), beta, high)
    for _ in range(30):
        middle = (low + high) / 2
        is_high = is_too_large(middle)
        low, high = np.where(is_high, low, middle), np.where(is_high, middle, high)
    # The upper bound is always above the previous β.
    return high


def _warn_unless_equal(r_hat: np.ndarray, spread: np.ndarray) -> None:
    is_equal = (r_hat <= _LARGEST_R_HAT) & (spread <= _LARGEST_SPREAD)
    if not is_equal.all():
        reasons = []
        if r_hat.max() > _LARGEST_R_HAT:
            reasons.append(f"R-hat is up to {r_hat.max():.2f}, more than {_LARGEST_R_HAT}")
        if spread.max() > _LARGEST_SPREAD:
            reasons.append(
                f"the log evidence of an event has a standard deviation of up to {spread.max():.1f}"
                f" over populations, more than {_LARGEST_SPREAD}"
            )
        warnings.warn(
            f"complete: the populations of {np.count_nonzero(~is_equal)} of {len(is_equal)} events "
            f"differ: {'; '.join(reasons)}. Each sample of "
            "these events is a plausible completion, but shares of modes, means and intervals are "
            "not reliable. More samples will not help populations that have found different modes.",
            stacklevel=3,
        )
