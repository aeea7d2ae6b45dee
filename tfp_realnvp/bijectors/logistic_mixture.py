"""A transformer based on the CDF of a logistic mixture."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfp_realnvp.bijectors.transformers import Transformer
from tfp_realnvp.internal import validation


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class LogisticMixture(Transformer):
    r"""The CDF F of a mixture of K logistic distributions, then a logit and an affine map.

    ```
    z = logit(F(x)) exp(a) + b,   F(x) = sum_k w_k sigmoid((x - m_k) exp(-s_k))
    ```

    The P = 3K + 2 parameters are K logits of w, K offsets of m from equidistant points in [-1, 1],
    K log scales s, and a and b. A tanh bounds s and a. `forward` solves for x by Newton's method,
    and bisects where a Newton step leaves the bracket. The derivatives of `forward` follow from the
    implicit function theorem.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> mixture, parameters = tfr.LogisticMixture(num_components=4), tf.random.normal([5, 14])
    >>> x = tf.random.normal([5, 1])
    >>> z, log_det = mixture.inverse(x, parameters)
    >>> bool(tf.reduce_max(abs(mixture.forward(z, parameters)[0] - x)) < 1e-4)
    True

    #### References

    Ho, Chen, Srinivas, Duan, Abbeel: Flow++, section 3.2.
    """

    def __init__(
        self, num_components: int = 8, *, max_log_scale: float = 5.0, max_log_factor: float = 3.0
    ) -> None:
        """Constructs the transformer.

        Args:
          num_components: number of components K.
          max_log_scale: bound of |s|.
          max_log_factor: bound of |a|.

        Raises:
          TypeError, ValueError: if an argument is not a number, or out of range.
        """
        super().__init__(name="logistic_mixture")
        name = "LogisticMixture"
        self.num_components = validation.count(num_components, "num_components", 1, name)
        expected = f"{name}: expected a positive"
        self.max_log_scale = validation.positive(max_log_scale, f"{expected} max_log_scale")
        self.max_log_factor = validation.positive(max_log_factor, f"{expected} max_log_factor")

    @property
    def num_parameters(self) -> int:
        """3K + 2."""
        return 3 * self.num_components + 2

    def inverse(self, x: tf.Tensor, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns z and log |dz/dx|."""
        mixture, log_factor, shift = self._split(parameters)
        logit, log_slope = mixture.logit(x)
        return logit * tf.exp(log_factor) + shift, log_slope + log_factor

    def forward(self, z: tf.Tensor, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns x and log |dx/dz|."""
        mixture, log_factor, shift = self._split(parameters)
        logit = (z - shift) * tf.exp(-log_factor)
        x = tf.stop_gradient(self._solve(logit, mixture))
        # The derivatives of one Newton step at the solution are the first derivatives of the
        # implicit function; two steps also give the second derivatives. These steps do not change
        # the value of x: where F is nearly constant, a change would amplify rounding errors.
        least = np.log(np.finfo(x.dtype.as_numpy_dtype).tiny) / 2
        for _ in range(2):
            value, log_slope = mixture.logit(x)
            residual = value - logit
            x -= (residual - tf.stop_gradient(residual)) * tf.exp(-tf.maximum(log_slope, least))
        _, log_slope = mixture.logit(x)
        return x, -log_slope - log_factor

    def _split(self, parameters: tf.Tensor) -> tuple["_Mixture", tf.Tensor, tf.Tensor]:
        """Returns the mixture, and a and b, [..., c]."""
        k = self.num_components
        channels = parameters.shape[-1] // self.num_parameters
        sizes = [size * channels for size in (k, k, k, 1, 1)]
        log_weights, means, log_scales, log_factor, shift = tf.split(parameters, sizes, axis=-1)
        # Spread the means: components with equal initial parameters would stay equal.
        means += tf.repeat(tf.linspace(tf.constant(-1, means.dtype), 1, k), channels)
        log_scales = _bounded(log_scales, self.max_log_scale)
        # Adding a list of small tensors is faster than a sum along an axis.
        groups = (log_weights, means, tf.exp(log_scales), log_weights + log_scales)
        mixture = _Mixture(*(tf.split(group, k, axis=-1) for group in groups))
        return mixture, _bounded(log_factor, self.max_log_factor), shift

    def _solve(self, logit: tf.Tensor, mixture: "_Mixture") -> tf.Tensor:
        # The mixture's quantile lies between the quantiles of its components.
        components = zip(mixture.means, mixture.scales, strict=True)
        quantiles = [mean + scale * logit for mean, scale in components]
        low, high = functools.reduce(tf.minimum, quantiles), functools.reduce(tf.maximum, quantiles)
        epsilon = 4 * np.finfo(logit.dtype.as_numpy_dtype).eps

        def newton_step(x: tf.Tensor, low: tf.Tensor, high: tf.Tensor, step: tf.Tensor) -> Any:
            value, log_slope = mixture.logit(x)
            low, high = tf.where(value < logit, x, low), tf.where(value < logit, high, x)
            newton = x - (value - logit) * tf.exp(-log_slope)
            new = tf.where((newton >= low) & (newton <= high), newton, (low + high) / 2)
            return new, low, high, tf.abs(new - x)

        start = (low + high) / 2
        solution, *_ = tf.while_loop(
            lambda _, low, high, step: tf.reduce_any(
                step > epsilon * (1 + tf.abs(low) + tf.abs(high))
            ),
            newton_step,
            (start, low, high, high - low),
            maximum_iterations=100,
        )
        return solution


class _Mixture(NamedTuple):
    """A mixture of logistic distributions with unnormalized weights."""

    log_weights: list[tf.Tensor]
    means: list[tf.Tensor]
    scales: list[tf.Tensor]
    log_weighted_scales: list[tf.Tensor]

    def logit(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns logit F(x), and the log of its derivative `f / (F (1 - F))`."""
        terms = []
        for log_weight, mean, scale, log_weighted_scale in zip(*self, strict=True):
            negative = (mean - x) / scale
            log_cdf = log_weight - tf.nn.softplus(negative)
            log_tail = log_cdf + negative
            terms.append((log_cdf, log_tail, log_cdf + log_tail - log_weighted_scale))
        log_cdf, log_tail, log_density = map(_log_sum_exp, zip(*terms, strict=True))
        # The weights are not normalized, so F, 1 - F and f contain the sum of the weights as a
        # factor.
        log_sum = _log_sum_exp([log_cdf, log_tail])
        return log_cdf - log_tail, log_density + log_sum - log_cdf - log_tail


def _log_sum_exp(terms: Sequence[tf.Tensor]) -> tf.Tensor:
    largest = tf.stop_gradient(functools.reduce(tf.maximum, terms))
    return largest + tf.math.log(tf.add_n([tf.exp(term - largest) for term in terms]))


def _bounded(x: tf.Tensor, bound: float) -> tf.Tensor:
    return bound * tf.tanh(x / bound)
