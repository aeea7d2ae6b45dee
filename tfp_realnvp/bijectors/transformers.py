"""Transformers: the elementwise bijections of a coupling, given parameters from its network."""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.internal import private_api, validation

__all__ = [
    "Additive",
    "Affine",
    "LogisticMixture",
    "RationalQuadraticSpline",
    "Transformer",
    "TransformerFn",
]

tfb = tfp.bijectors


class Transformer(tf.Module, abc.ABC):
    r"""An elementwise bijection x = f(z; θ) of latents z and data x, with P parameters an element.

    A coupling predicts the parameters from the half that it keeps. Its network gives `P c` channels
    for c transformed ones: the first parameter of all channels, then the second, and so on.

    #### Example

    >>> import tensorflow as tf
    >>> class Double(Transformer):
    ...   num_parameters = 1
    ...   def inverse(self, x, parameters):
    ...     return x * tf.exp(parameters), parameters
    ...   def forward(self, z, parameters):
    ...     return z * tf.exp(-parameters), -parameters
    >>> z, log_det = Double().inverse(tf.ones([2, 4, 4, 3]), tf.zeros([2, 4, 4, 3]))
    >>> z.shape, log_det.shape
    (TensorShape([2, 4, 4, 3]), TensorShape([2, 4, 4, 3]))

    #### References

    Papamakarios et al.: Normalizing flows for probabilistic modeling and inference, section 3.1.
    """

    num_parameters: int
    is_constant_jacobian = False

    @abc.abstractmethod
    def inverse(self, x: tf.Tensor, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns z and log |dz/dx| of each element.

        Args:
          x: data, [..., H, W, c], or [..., c] of vectors.
          parameters: [..., H, W, P c], or [..., P c].
        """

    @abc.abstractmethod
    def forward(self, z: tf.Tensor, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns x and log |dx/dz| of each element; see `inverse`."""

    def with_values(self, values: Sequence[tf.Tensor]) -> Transformer:
        """Returns a transformer that reads `values` instead of its `variables`."""
        other = copy.copy(self)
        names = {id(value): name for name, value in vars(self).items()}
        for variable, value in zip(self.variables, values, strict=True):
            setattr(other, names[id(variable)], value)
        return other


# Returns a new transformer.
TransformerFn = Callable[[], Transformer]


class Affine(Transformer):
    r"""`z = x exp(s) + t` with `s = scale * tanh(θ₂)`, `t = θ₁`, and a learned `scale` (eq. 9).

    tanh bounds the log scale s.

    #### Example

    >>> import tensorflow as tf
    >>> z, log_det = Affine().inverse(tf.constant([[2.0]]), tf.constant([[1.0, 0.0]]))
    >>> z.numpy().tolist(), log_det.numpy().tolist()
    ([[3.0]], [[0.0]])

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, section 3.2 and 4.1.
    """

    num_parameters = 2

    def __init__(self, scale: tf.Variable | float = 1.0, dtype: Any = tf.float32) -> None:
        """Constructs the transformer.

        Args:
          scale: the initial value of the trainable scale of tanh, or the variable itself.
          dtype: of the variable.
        """
        super().__init__(name="affine")
        self.scale = (
            scale
            if isinstance(scale, tf.Variable)
            else tf.Variable(scale, dtype=dtype, name="scale")
        )

    def inverse(self, x: tf.Tensor, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns z and s."""
        shift, log_scale = self._shift_and_log_scale(parameters)
        return x * tf.exp(log_scale) + shift, log_scale

    def forward(self, z: tf.Tensor, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns x and -s."""
        shift, log_scale = self._shift_and_log_scale(parameters)
        return (z - shift) * tf.exp(-log_scale), -log_scale

    def _shift_and_log_scale(self, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        shift, log_scale = tf.split(parameters, 2, axis=-1)
        return shift, self.scale * tf.tanh(log_scale)


class Additive(Transformer):
    """`z = x + θ`, with a log det of zero.

    #### Example

    >>> import tensorflow as tf
    >>> z, _ = Additive().inverse(tf.constant([2.0]), tf.constant([1.0]))
    >>> z.numpy().tolist()
    [3.0]

    #### References

    Dinh, Krueger, Bengio: NICE, section 3.2.
    """

    num_parameters = 1
    is_constant_jacobian = True

    def __init__(self) -> None:
        """Constructs the transformer."""
        super().__init__(name="additive")

    def inverse(self, x: tf.Tensor, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns z and zeros."""
        return x + parameters, tf.zeros_like(x)

    def forward(self, z: tf.Tensor, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns x and zeros."""
        return z - parameters, tf.zeros_like(z)


class RationalQuadraticSpline(Transformer):
    r"""A monotone rational-quadratic spline from data to latents on [-B, B], the identity outside.

    Of the P = 3K - 1 parameters, K give the widths of the bins and K their heights, both by a
    softmax, and K - 1 the slopes at the knots between them, by a softplus. Parameters of zero give
    the identity. It is TFP's `tfb.RationalQuadraticSpline`.

    #### Example

    >>> import tensorflow as tf
    >>> spline = RationalQuadraticSpline(num_bins=4)
    >>> z, log_det = spline.inverse(tf.constant([[2.0]]), tf.random.normal([1, 11]))
    >>> x, _ = spline.forward(z, tf.random.normal([1, 11]))
    >>> z.shape, x.shape
    (TensorShape([1, 1]), TensorShape([1, 1]))

    #### References

    Durkan, Bekasov, Murray, Papamakarios: Neural spline flows, section 3.1.
    """

    def __init__(
        self,
        num_bins: int = 8,
        bound: float = 8.0,
        *,
        min_bin_size: float = 1e-3,
        min_slope: float = 1e-3,
    ) -> None:
        """Constructs the transformer.

        Args:
          num_bins: K.
          bound: B.
          min_bin_size: least width and height of a bin, as a share of 2B.
          min_slope: least slope at a knot; with it the log scales are bounded.

        Raises:
          ValueError: if a number is out of range.
          TypeError: if one is not a number.
        """
        super().__init__(name="rational_quadratic_spline")
        name = "RationalQuadraticSpline"
        self.num_bins = validation.integer(num_bins, 2, f"{name}: expected num_bins of at least 2")
        self.bound = validation.positive(bound, f"{name}: expected a positive bound")
        expected = f"{name}: expected a min_bin_size in (0, 1 / num_bins)"
        self.min_bin_size = validation.real(min_bin_size, lambda x: 0 < x < 1 / num_bins, expected)
        expected = f"{name}: expected a min_slope in (0, 1)"
        self.min_slope = validation.real(min_slope, lambda x: 0 < x < 1, expected)

    @property
    def num_parameters(self) -> int:
        """3K - 1."""
        return 3 * self.num_bins - 1

    def inverse(self, x: tf.Tensor, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns z = spline(x) and its log slope."""
        return _with_shape(x, private_api.uncached_forward(self._spline(parameters), x))

    def forward(self, z: tf.Tensor, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns x, the inverse of the spline at z, and its log slope."""
        return _with_shape(z, private_api.uncached_inverse(self._spline(parameters), z))

    def _spline(self, parameters: tf.Tensor) -> tfb.Bijector:
        by_parameter = tf.stack(tf.split(parameters, self.num_parameters, axis=-1), axis=-1)
        widths, heights, slopes = tf.split(
            by_parameter, [self.num_bins, self.num_bins, self.num_bins - 1], axis=-1
        )
        # softplus(zero_slope) + min_slope = 1.
        zero_slope = np.log(np.expm1(1 - self.min_slope))
        return tfb.RationalQuadraticSpline(
            bin_widths=self._bin_sizes(widths),
            bin_heights=self._bin_sizes(heights),
            knot_slopes=self.min_slope + tf.nn.softplus(slopes + zero_slope),
            range_min=-self.bound,
        )

    def _bin_sizes(self, parameters: tf.Tensor) -> tf.Tensor:
        free = 1 - self.num_bins * self.min_bin_size
        return 2 * self.bound * (self.min_bin_size + free * tf.nn.softmax(parameters))


def _with_shape(x: tf.Tensor, results: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the results with the static shape of `x`, which TFP's spline loses in part."""
    for each in results:
        each.set_shape(x.shape)
    return results


class LogisticMixture(Transformer):
    r"""The CDF F of a mixture of K logistic distributions, then a logit and an affine map.

    ```
    z = logit(F(x)) exp(a) + b,   F(x) = sum_k w_k sigmoid((x - m_k) exp(-s_k))
    ```

    The P = 3K + 2 parameters are the logits of w, m relative to K equidistant points in [-1, 1], s,
    a and b; s and a are bounded by tanh. `forward` solves for x by Newton steps within a bracket
    that is halved where they leave it. Its first and second derivatives are those of the implicit
    function.

    #### Example

    >>> import tensorflow as tf
    >>> mixture, parameters = LogisticMixture(num_components=4), tf.random.normal([5, 14])
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
          num_components: K.
          max_log_scale: bound of |s|.
          max_log_factor: bound of |a|.

        Raises:
          ValueError: if a number is out of range.
          TypeError: if one is not a number.
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
        # Newton steps from a constant: one makes the first derivatives those of the implicit
        # function, two the second ones.
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
        # The quantiles of all components enclose that of the mixture.
        quantiles = means + tf.exp(log_scales) * logit[..., tf.newaxis]
        low, high = tf.reduce_min(quantiles, axis=-1), tf.reduce_max(quantiles, axis=-1)
        epsilon = 4 * np.finfo(logit.dtype.as_numpy_dtype).eps

        def goes_on(x: tf.Tensor, low: tf.Tensor, high: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
            del x
            return tf.reduce_any(step > epsilon * (1 + tf.abs(low) + tf.abs(high)))

        def narrow(
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
            goes_on,
            narrow,
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
    """Returns `x` for small values, and values within ±bound for all."""
    return bound * tf.tanh(x / bound)
