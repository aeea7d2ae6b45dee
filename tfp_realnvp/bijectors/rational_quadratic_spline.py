"""A transformer that is a monotone rational-quadratic spline."""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfp_realnvp.bijectors.transformers import Transformer
from tfp_realnvp.internal import validation


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class RationalQuadraticSpline(Transformer):
    r"""A monotone rational-quadratic spline from data to latents on [-B, B], the identity outside.

    A bin from the knot (x₀, z₀) to (x₁, z₁) has width w, height h, mean slope `s = h / w` and the
    slopes δ₀ and δ₁ at its ends. Within it (eq. 4),

    ```
    z = z₀ + h (s ξ² + δ₀ ξ (1 - ξ)) / (s + (δ₀ + δ₁ - 2 s) ξ (1 - ξ)),   ξ = (x - x₀) / w
    dz/dx = s² (δ₁ ξ² + 2 s ξ (1 - ξ) + δ₀ (1 - ξ)²) / (s + (δ₀ + δ₁ - 2 s) ξ (1 - ξ))²
    ```

    `forward` solves the quadratic equation for ξ. With `ρ = (z - z₀) / h` and
    `q = δ₀ (1 - ρ) - δ₁ ρ`, the root in [0, 1] is

    ```
    ξ = 2 s ρ / (2 s ρ + q + sqrt(q² + 4 s² ρ (1 - ρ)))
    ```

    Of the P = 3K - 1 parameters θ, K give the widths of the bins and K the heights, each by `2B (m
    + (1 - K m) softmax(θ))` with `m = min_bin_size`. The other K - 1 parameters give the slopes at
    inner knots, `min_slope + softplus(θ + c)`. The slopes at ±B are 1. With the constant c,
    parameters of zero give the identity.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> spline, parameters = tfr.RationalQuadraticSpline(num_bins=4), tf.random.normal([5, 11])
    >>> x = tf.random.normal([5, 1])
    >>> z, log_det = spline.inverse(x, parameters)
    >>> bool(tf.reduce_max(abs(spline.forward(z, parameters)[0] - x)) < 1e-4)
    True

    #### References

    Durkan, Bekasov, Murray, Papamakarios: Neural spline flows, section 3.1.
    Gregory, Delbourgo: Piecewise rational quadratic interpolation to monotonic data.
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
          num_bins: number of bins K.
          bound: bound B of the interval.
          min_bin_size: least width and height of a bin, as a fraction of 2B.
          min_slope: least slope at a knot.

        Raises:
          TypeError, ValueError: if an argument is not a number, or out of range.
        """
        super().__init__(name="rational_quadratic_spline")
        name = "RationalQuadraticSpline"
        self.num_bins = validation.count(num_bins, "num_bins", 2, name)
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
        is_inside, inside = self._inside(x)
        bins = self._bins(inside, parameters, is_data=True)
        # Rounding can move a value out of its bin.
        xi = tf.clip_by_value((inside - bins.x) / bins.width, 0, 1)
        rho, log_slope = bins.rho_and_log_slope(xi)
        z = bins.z + bins.height * rho
        return tf.where(is_inside, z, x), tf.where(is_inside, log_slope, 0)

    def forward(self, z: tf.Tensor, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns x, the spline's inverse at z, and its log slope."""
        is_inside, inside = self._inside(z)
        bins = self._bins(inside, parameters, is_data=False)
        xi = bins.xi(tf.clip_by_value((inside - bins.z) / bins.height, 0, 1))
        _, log_slope = bins.rho_and_log_slope(xi)
        x = bins.x + bins.width * xi
        return tf.where(is_inside, x, z), tf.where(is_inside, -log_slope, 0)

    def _inside(self, value: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns a mask of the values in (-B, B), and the values with 0 outside of (-B, B)."""
        # Far outside of the interval, derivatives would not be finite.
        is_inside = tf.abs(value) < self.bound
        return is_inside, tf.where(is_inside, value, 0)

    def _bins(self, value: tf.Tensor, parameters: tf.Tensor, is_data: bool) -> "_Bins":
        """Returns the bins that contain `value`: data x if `is_data`, otherwise latents z."""
        k = self.num_bins
        # Operations on lists of small tensors are faster than stacking, broadcasting and sums along
        # an axis.
        parts = tf.split(parameters, self.num_parameters, axis=-1)
        x, z = self._knots(parts[:k]), self._knots(parts[k : 2 * k])
        zeros = tf.zeros_like(parts[0])
        slopes = [zeros, *parts[2 * k :], zeros]
        is_above = [tf.cast(value >= knot, value.dtype) for knot in (x if is_data else z)[1:-1]]
        ones = tf.ones_like(zeros)
        in_bin = [low - high for low, high in itertools.pairwise([ones, *is_above, zeros])]

        def of_bin(values: Sequence[tf.Tensor]) -> tf.Tensor:
            # `tf.gather` would be simpler, but gives wrong values under `tf.vectorized_map`.
            return tf.add_n([mask * value for mask, value in zip(in_bin, values, strict=True)])

        x0, z0, slope0 = (of_bin(at_knots[:-1]) for at_knots in (x, z, slopes))
        x1, z1, slope1 = (of_bin(at_knots[1:]) for at_knots in (x, z, slopes))
        return _Bins(x0, z0, x1 - x0, z1 - z0, self._slope(slope0), self._slope(slope1))

    def _knots(self, parameters: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        bound = self.bound * tf.ones_like(parameters[0])
        largest = tf.stop_gradient(functools.reduce(tf.maximum, parameters))
        shares = [tf.exp(parameter - largest) for parameter in parameters]
        least = 2 * self.bound * self.min_bin_size
        factor = (2 * self.bound - self.num_bins * least) / tf.add_n(shares)
        sizes = [least + share * factor for share in shares]
        # Set the last knot to B exactly, without rounding errors.
        return [*itertools.accumulate(sizes[:-1], initial=-bound), bound]

    def _slope(self, parameter: tf.Tensor) -> tf.Tensor:
        parameter_of_slope_1 = np.log(np.expm1(1 - self.min_slope))
        return self.min_slope + tf.nn.softplus(parameter + parameter_of_slope_1)


class _Bins(NamedTuple):
    """The left knot (x₀, z₀), width w, height h, and slopes δ₀ and δ₁ of bins."""

    x: tf.Tensor
    z: tf.Tensor
    width: tf.Tensor
    height: tf.Tensor
    slope0: tf.Tensor
    slope1: tf.Tensor

    def rho_and_log_slope(self, xi: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `ρ = (z - z₀) / h` and log dz/dx. Computes with slopes divided by s."""
        s = self.height / self.width
        ratio0, ratio1, product = self.slope0 / s, self.slope1 / s, xi * (1 - xi)
        denominator = 1 + (ratio0 + ratio1 - 2) * product
        rho = (tf.square(xi) + ratio0 * product) / denominator
        slope = self.slope1 * tf.square(xi) + 2 * s * product + self.slope0 * tf.square(1 - xi)
        return rho, tf.math.log(slope) - 2 * tf.math.log(denominator)

    def xi(self, rho: tf.Tensor) -> tf.Tensor:
        """Returns `ξ = (x - x₀) / w` for ρ. Computes with slopes divided by s."""
        s = self.height / self.width
        q = (self.slope0 * (1 - rho) - self.slope1 * rho) / s
        # For negative q, `q + sqrt(...)` loses digits, so solve the mirrored equation for 1 - ξ.
        # `tf.abs(q)` would have a wrong derivative at zero.
        is_positive = q > 0
        root = tf.where(is_positive, q, -q) + tf.sqrt(tf.square(q) + 4 * rho * (1 - rho))
        below = tf.where(is_positive, 2 * rho, root)
        above = tf.where(is_positive, root, 2 * (1 - rho))
        return below / (below + above)
