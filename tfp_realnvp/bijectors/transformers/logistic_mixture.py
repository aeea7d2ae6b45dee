"""Transformer by the CDF of a mixture of logistic distributions."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfp_realnvp.bijectors.transformers.transformer import Transformer
from tfp_realnvp.internal import validation

__all__ = ["LogisticMixture"]


class LogisticMixture(Transformer):
    r"""The CDF F of a mixture of K logistic distributions, then a logit and an affine map.

    ```
    z = logit(F(x)) exp(a) + b,   F(x) = sum_k w_k sigmoid((x - m_k) exp(-s_k))
    ```

    The P = 3K + 2 parameters are the logits of w, m relative to K equidistant points in [-1, 1], s,
    a and b; s and a are bounded by tanh. `forward` solves for x by Newton steps within a bracket,
    which is halved where a step leaves it. Its first and second derivatives are those of the
    implicit function.

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

    _MAX_STEPS = 100

    def __init__(
        self, num_components: int = 8, *, max_log_scale: float = 5.0, max_log_factor: float = 3.0
    ) -> None:
        """Constructs the transformer.

        Args:
          num_components: number of components K.
          max_log_scale: bound of |s|.
          max_log_factor: bound of |a|.

        Raises:
          ValueError: if a number is out of range.
          TypeError: if an argument is not a number.
        """
        super().__init__(name="logistic_mixture")
        name = "LogisticMixture"
        self.num_components = validation.integer(
            num_components, 1, f"{name}: expected num_components of at least 1"
        )
        self.max_log_scale = validation.positive(
            max_log_scale, f"{name}: expected a positive max_log_scale"
        )
        self.max_log_factor = validation.positive(
            max_log_factor, f"{name}: expected a positive max_log_factor"
        )

    @property
    def num_parameters(self) -> int:
        """3K + 2."""
        return 3 * self.num_components + 2

    def inverse(self, x: tf.Tensor, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns z and log |dz/dx|."""
        mixture, log_factor, shift = self._split(parameters)
        logit, log_slope = _mixture_logit(x, *mixture)
        return logit * tf.exp(log_factor) + shift, log_slope + log_factor

    def forward(self, z: tf.Tensor, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns x and log |dx/dz|."""
        mixture, log_factor, shift = self._split(parameters)
        logit = (z - shift) * tf.exp(-log_factor)
        x = tf.stop_gradient(self._solve(logit, *mixture))
        # Starting from a constant, one Newton step gives the first derivatives of the implicit
        # function, and two steps give the second derivatives.
        for _ in range(2):
            value, log_slope = _mixture_logit(x, *mixture)
            x -= (value - logit) * tf.exp(-log_slope)
        _, log_slope = _mixture_logit(x, *mixture)
        return x, -log_slope - log_factor

    def _split(self, parameters: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], tf.Tensor, tf.Tensor]:
        """Returns log weights, means and log scales [..., c, K], and a and b [..., c]."""
        k = self.num_components
        by_parameter = tf.stack(tf.split(parameters, self.num_parameters, axis=-1), axis=-1)
        weights, means, log_scales, rest = tf.split(by_parameter, [k, k, k, 2], axis=-1)
        log_factor, shift = tf.unstack(rest, axis=-1)
        # Components that start equal would stay equal.
        means += tf.linspace(tf.constant(-1, means.dtype), tf.constant(1, means.dtype), k)
        log_scales = _bounded(log_scales, self.max_log_scale)
        mixture = tf.nn.log_softmax(weights), means, log_scales
        return mixture, _bounded(log_factor, self.max_log_factor), shift

    def _solve(
        self, logit: tf.Tensor, log_weights: tf.Tensor, means: tf.Tensor, log_scales: tf.Tensor
    ) -> tf.Tensor:
        # The quantile of the mixture lies between the quantiles of the components.
        quantiles = means + tf.exp(log_scales) * logit[..., tf.newaxis]
        low, high = tf.reduce_min(quantiles, axis=-1), tf.reduce_max(quantiles, axis=-1)
        epsilon = 4 * np.finfo(logit.dtype.as_numpy_dtype).eps

        def step_is_large(
            x: tf.Tensor, low: tf.Tensor, high: tf.Tensor, step: tf.Tensor
        ) -> tf.Tensor:
            del x
            return tf.reduce_any(step > epsilon * (1 + tf.abs(low) + tf.abs(high)))

        def newton_step(
            x: tf.Tensor, low: tf.Tensor, high: tf.Tensor, step: tf.Tensor
        ) -> tuple[tf.Tensor, ...]:
            value, log_slope = _mixture_logit(x, log_weights, means, log_scales)
            low, high = tf.where(value < logit, x, low), tf.where(value < logit, high, x)
            newton = x - (value - logit) * tf.exp(-log_slope)
            is_inside = (newton >= low) & (newton <= high)
            new = tf.where(is_inside, newton, (low + high) / 2)
            return new, low, high, tf.abs(new - x)

        start = (low + high) / 2
        solution, *_ = tf.while_loop(
            step_is_large,
            newton_step,
            (start, low, high, high - low),
            maximum_iterations=self._MAX_STEPS,
        )
        return solution


def _mixture_logit(
    x: tf.Tensor, log_weights: tf.Tensor, means: tf.Tensor, log_scales: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns logit(F(x)) and the log of its slope."""
    standardized = (x[..., tf.newaxis] - means) * tf.exp(-log_scales)
    below, above = tf.math.log_sigmoid(standardized), tf.math.log_sigmoid(-standardized)
    log_cdf = tf.reduce_logsumexp(log_weights + below, axis=-1)
    log_tail = tf.reduce_logsumexp(log_weights + above, axis=-1)
    log_density = tf.reduce_logsumexp(log_weights + below + above - log_scales, axis=-1)
    return log_cdf - log_tail, log_density - log_cdf - log_tail


def _bounded(x: tf.Tensor, bound: float) -> tf.Tensor:
    """Returns nearly `x` for small values, and values within ±bound for all."""
    return bound * tf.tanh(x / bound)
