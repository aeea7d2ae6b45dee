"""A logit transform of pixel values."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfp_realnvp.bijectors.flow_bijector import FlowBijector, Pass
from tfp_realnvp.internal import validation


class PixelLogit(FlowBijector):
    r"""Maps the real line to the interval (-α', n + α'), which contains all pixel values [0, n).

    With `n = num_values` and `α' = n α / (1 - 2α)`, elementwise,

    ```
    inverse (data -> latent):  x = logit(α + (1 - 2α) y / n) = log(y + α') - log(n + α' - y)
    forward (latent -> data):  y = (n + 2α') sigmoid(x) - α'
    ildj = sum(log(n + 2α') - log(y + α') - log(n + α' - y))
    ```

    The log det includes the scaling by 1/n, so a flow gives densities p of pixel values, and
    -log2(p) / D is in bits/dim. Samples can lie slightly outside of [0, n); `to_uint8` clips them.
    The inverse is finite on the open interval. If the sigmoid rounds to an end of the interval,
    `forward` returns the closest number inside.

    With `alpha=None` the map is linear, and does not bound pixel values:

    ```
    inverse (data -> latent):  x = 2 y / n - 1
    ```

    #### Example

    >>> import numpy as np, tensorflow as tf, tfp_realnvp as tfr
    >>> bijector = tfr.PixelLogit()
    >>> round(bijector.forward(tf.zeros([1, 1, 1])).numpy().item(), 3)
    128.0
    >>> bool(np.isfinite(bijector.inverse(tf.constant([[[0., 255.999]]]))).all())
    True

    Attributes:
      num_values: number n of gray levels.
      low, high: ends -α' and n + α' of the interval; infinite without a logit.

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, section 4.1; the symmetric form
    with 1 - 2α is from the authors' code.
    """

    def __init__(
        self,
        alpha: float | None = 0.05,
        num_values: int = 256,
        *,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        name: str = "pixel_logit",
    ) -> None:
        """Constructs the bijector.

        Args:
          alpha: α in (0, 0.5), or `None` for a linear map.
          num_values: the number n of gray levels, at least 2.
          dtype, name: as in `FlowBijector`.
          validate_args: whether to assert that data are finite and within the open interval.

        Raises:
          TypeError, ValueError: if an argument has a wrong type or is out of range, or `dtype` is
            too coarse for the interval.
        """
        parameters = dict(locals())
        if alpha is not None:
            expected = f"{name}: expected an alpha in (0, 0.5)"
            validation.real(alpha, lambda number: 0 < number < 0.5, expected)
        self.num_values = num_values = validation.count(num_values, "num_values", 2, name)
        parameters["num_values"] = num_values
        super().__init__(is_constant_jacobian=alpha is None, parameters=parameters)
        numpy_dtype = self.dtype.as_numpy_dtype
        margin = np.inf if alpha is None else num_values * (alpha / (1 - 2 * alpha))
        low, high, limits = -margin, num_values + margin, np.finfo(numpy_dtype)
        # With too coarse a dtype, the lowest gray level would round to an end of the interval, or
        # the highest level would lose its noise.
        is_resolved = margin >= float(limits.tiny) and high * float(limits.eps) <= 2**-4
        expected = f"{name}: expected an alpha and num_values whose interval fits {self.dtype.name}"
        given = {"alpha": alpha, "num_values": num_values, "interval": (low, high)}
        validation.require(alpha is None or is_resolved, expected, given)
        self._low, self._high = numpy_dtype(low), numpy_dtype(high)
        self.low, self.high = float(self._low), float(self._high)

    def _assertions(self, value: tf.Tensor, inverse: bool) -> list[tf.Operation]:
        assertions = super()._assertions(value, inverse)
        if inverse:
            message = f"{self.name}: expected values in ({self.low:.4f}, {self.high:.4f})"
            assertions.append(tf.debugging.assert_greater(value, self._low, message=message))
            assertions.append(tf.debugging.assert_less(value, self._high, message=message))
        return assertions

    def _forward_and_log_det(self, x: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        if self.is_constant_jacobian:
            return (x + 1) * (self.num_values / 2), -self._log_det_of_scaling(x, p)
        width = self._high - self._low
        ends = np.nextafter(self._low, self._high), np.nextafter(self._high, self._low)
        y = tf.clip_by_value(width * tf.sigmoid(x) + self._low, *ends)
        fldj = np.log(width) - tf.nn.softplus(x) - tf.nn.softplus(-x)
        return y, self._sum_over_event(fldj, p)

    def _inverse_and_log_det(self, y: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        if self.is_constant_jacobian:
            return y * (2 / self.num_values) - 1, self._log_det_of_scaling(y, p)
        above_low, below_high = tf.math.log(y - self._low), tf.math.log(self._high - y)
        ildj = np.log(self._high - self._low) - above_low - below_high
        return above_low - below_high, self._sum_over_event(ildj, p)

    def _log_det_of_scaling(self, value: tf.Tensor, p: Pass) -> tf.Tensor:
        log_dets = tf.fill(tf.shape(value), tf.constant(np.log(2 / self.num_values), value.dtype))
        return self._sum_over_event(log_dets, p)
