"""Completes images and vectors: samples unknown values given the known values."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from numpy.typing import ArrayLike

from tfp_realnvp import pixels
from tfp_realnvp.bijectors.flow_bijector import surround_with
from tfp_realnvp.distributions import routing
from tfp_realnvp.internal import validation
from tfp_realnvp.latents.sampling import stateless_seed

tfd = tfp.distributions

# Variance of logit(u) for uniform u.
_LOGISTIC_VARIANCE = np.pi**2 / 3
# Chains with a larger R-hat have not mixed.
_LARGEST_R_HAT = 1.1
# Number of flow samples from which the metric of the chains is estimated.
_NUM_METRIC_SAMPLES = 1000


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
    num_leapfrog_steps: int = 8,
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
    expected = f"complete: expected num_samples of at least four per chain, {4 * num_chains}"
    num_samples = validation.integer(num_samples, 4 * num_chains, expected)
    events = np.asarray(events)
    is_known = _known(events, is_known, flow.event_shape)
    support = _Support(flow, events, is_known)
    when = "for a distribution that takes a condition"
    applies = routing.takes_condition(flow)
    validation.only(conditional_input, "conditional_input", applies, when, "complete")
    conditions = routing.as_conditions(flow, conditional_input, "complete")
    repeated = None
    if conditions is not None:
        expected = f"complete: expected one condition for each of {len(events)} events"
        validation.require(len(conditions) == len(events), expected, conditions.shape)
        repeated = tf.concat([conditions] * num_chains, axis=0)
    metric_seed, start_seed, chain_seed = tfp.random.split_seed(stateless_seed(seed), 3)
    mean, scale = _metric(flow, support, conditions, metric_seed)
    product = "cnj,ij->cni" if scale.shape.rank == 2 else "cnj,nij->cni"

    def to_values(z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return support.forward_and_log_det(mean + tf.einsum(product, z, scale))

    def log_prob(z: tf.Tensor) -> tf.Tensor:
        x, fldj = to_values(z)
        with surround_with(condition=repeated):
            log_probs = flow.log_prob(tf.reshape(x, [-1, *events.shape[1:]]))
        return tf.reshape(log_probs, fldj.shape) + fldj

    shape = [num_chains, len(events), support.size]
    starts = tf.random.stateless_normal(shape, start_seed, dtype=flow.dtype)
    numbers = math.ceil(num_samples / num_chains), num_burnin_steps, num_leapfrog_steps
    states, is_accepted, step_sizes = _sample_chains(log_prob, starts, *numbers, chain_seed)
    x = np.stack([to_values(z)[0].numpy() for z in states])
    reduction = tfp.mcmc.potential_scale_reduction(x, split_chains=True).numpy()
    r_hat = np.where(support.is_known, 1.0, np.sqrt(reduction)).max(axis=-1)
    samples = x.reshape(-1, *events.shape)[:num_samples]
    _warn_unless_mixed(r_hat, step_sizes, num_samples, num_leapfrog_steps)
    return Completion(support.as_events(samples), r_hat, is_accepted.mean(axis=(0, 1)))


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
        self._width = np.where(self.is_known, 1, self._num_values or 1).astype(dtype)
        # `_metric` represents each gray level by the center of its interval.
        self.centers = self.unbounded(self._low + dtype(0.5) * self._is_gray)

    def forward_and_log_det(self, t: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns x [..., N, D] and the log det [..., N], up to a constant."""
        bounded = self._low + self._width * tf.sigmoid(t)
        x = tf.where(self._is_bounded, bounded, tf.where(self.is_known, self._low, t))
        fldj = tf.where(self._is_bounded, -tf.nn.softplus(t) - tf.nn.softplus(-t), 0)
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


def _metric(
    distribution: tfd.Distribution, support: _Support, conditions: tf.Tensor | None, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the mean m of the unknown coordinates, and L⁻ᵀ for their precision L Lᵀ.

    With the precision matrix P of all coordinates, the precision of the unknown coordinates given
    the known ones is P_uu, and their mean is m_u - P_uu⁻¹ P_uk (t_k - m_k). Shapes are [N, D] and
    [N, D, D], or [D, D] if the same values are unknown in all events.
    """
    size = support.size
    num_samples = max(_NUM_METRIC_SAMPLES, 2 * size)
    if conditions is not None:
        conditions = tf.gather(conditions, np.arange(num_samples) % len(support.is_known))
    with surround_with(condition=conditions):
        x = distribution.sample(num_samples, seed=seed)
    t = support.unbounded(x.numpy().reshape(num_samples, size))
    t = t[np.isfinite(t).all(axis=1)].astype(np.float64)
    covariance = np.cov(t, rowvar=False).reshape(size, size)
    # Shrinkage to the diagonal keeps the inverse stable if samples are few or nearly collinear.
    share = size / (size + 10 * num_samples)
    covariance += share * (np.diag(np.diag(covariance)) - covariance)
    precision = np.linalg.inv(covariance)
    is_known = support.is_known
    offset = np.where(is_known, support.centers - t.mean(axis=0), 0)
    rows = is_known[0] if (is_known == is_known[0]).all() else is_known
    is_unknown_pair = ~rows[..., :, np.newaxis] & ~rows[..., np.newaxis, :]
    rest = np.eye(size) * np.where(rows, 1 / _LOGISTIC_VARIANCE, 0)[..., np.newaxis, :]
    factor = np.linalg.cholesky(np.where(is_unknown_pair, precision, rest))
    scale = np.linalg.inv(factor).swapaxes(-1, -2)
    pull = np.where(is_known, 0, -offset @ precision)
    shift = (scale @ (scale.swapaxes(-1, -2) @ pull[..., np.newaxis]))[..., 0]
    mean = np.where(is_known, 0, t.mean(axis=0) + shift)
    return tf.constant(mean, distribution.dtype), tf.constant(scale, distribution.dtype)


def _sample_chains(
    target_log_prob: Callable[[tf.Tensor], tf.Tensor],
    starts: tf.Tensor,
    num_draws: int,
    num_burnin_steps: int,
    num_leapfrog_steps: int,
    seed: tf.Tensor,
) -> tuple[list[tf.Tensor], np.ndarray, np.ndarray]:
    """Returns states and acceptance after burn-in, [C, N, ...], and the step sizes [N]."""
    # Each event has its own step size.
    step_size = tf.fill([1, starts.shape[1], 1], tf.constant(0.2, starts.dtype))
    kernel = tfp.mcmc.HamiltonianMonteCarlo(target_log_prob, step_size, num_leapfrog_steps=1)
    kernel = tfp.mcmc.DualAveragingStepSizeAdaptation(
        kernel,
        num_burnin_steps,
        target_accept_prob=0.75,
        # Chains of an event share a step size, adapted to their mean acceptance rate. An arithmetic
        # mean would hide chains that reject all proposals and never move.
        reduce_fn=tfp.math.reduce_log_harmonic_mean_exp,
    )

    @tf.function(autograph=False)
    def draw(state: Any, results: Any, num_steps: tf.Tensor, seed: tf.Tensor) -> tuple[Any, Any]:
        inner = results.inner_results
        accepted = inner.accepted_results._replace(num_leapfrog_steps=num_steps)
        results = results._replace(inner_results=inner._replace(accepted_results=accepted))
        return kernel.one_step(state, results, seed=seed)

    state, results = starts, tf.function(kernel.bootstrap_results, autograph=False)(starts)
    log_probs = results.inner_results.accepted_results.target_log_prob.numpy()
    expected = "complete: expected finite known values, and finite log densities where chains start"
    validation.require(bool(np.isfinite(log_probs).all()), expected, log_probs)
    shape = [num_burnin_steps + num_draws, 2]
    draw_seeds = tf.random.stateless_uniform(shape, seed, None, None, tf.int32)
    rng = np.random.default_rng(seed.numpy().astype(np.uint32))
    states, is_accepted = [], []
    for number, draw_seed in enumerate(draw_seeds):
        num_steps = tf.constant(rng.integers(1, num_leapfrog_steps + 1), tf.int32)
        state, results = draw(state, results, num_steps, draw_seed)
        if number >= num_burnin_steps:
            states.append(state)
            is_accepted.append(results.inner_results.is_accepted.numpy())
    return states, np.stack(is_accepted), results.new_step_size.numpy().reshape(-1)


def _warn_unless_mixed(
    r_hat: np.ndarray, step_sizes: np.ndarray, num_samples: int, num_leapfrog_steps: int
) -> None:
    is_mixed = r_hat <= _LARGEST_R_HAT
    if is_mixed.all():
        return
    # R-hat of a chain that never moved is NaN, because the chain has no variance.
    largest = np.nan_to_num(r_hat[~is_mixed], nan=np.inf, posinf=np.inf).max()
    longer = math.ceil(np.pi / np.median(step_sizes[~is_mixed]))
    factor = (largest**2 - 1) / (_LARGEST_R_HAT**2 - 1)
    advice = []
    if longer > num_leapfrog_steps:
        advice.append(f"num_leapfrog_steps from {num_leapfrog_steps} to {longer:,}")
    if np.isfinite(factor):
        enough = 100 * math.ceil(factor * num_samples / 100)
        advice.append(f"num_samples from {num_samples:,} to {enough:,}")
    to_raise = " and, if that is not enough, ".join(advice) or "num_burnin_steps"
    warnings.warn(
        f"complete: the chains of {np.count_nonzero(~is_mixed)} of {len(is_mixed)} events have not "
        f"mixed, so that means and intervals of their samples are not reliable: R-hat is up to "
        f"{largest:.2f}, and should be below {_LARGEST_R_HAT}. Raise {to_raise}. The time grows in "
        "proportion.",
        stacklevel=3,
    )
