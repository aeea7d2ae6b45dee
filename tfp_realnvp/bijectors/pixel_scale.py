"""A linear map between pixel values and the interval from -1 to 1."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tfp_realnvp.bijectors.flow_bijector import FlowBijector
from tfp_realnvp.internal import validation

__all__ = ["PixelScale"]


class PixelScale(FlowBijector):
    r"""Scales pixel values [0, n) to [-1, 1): `PixelLogit` without its logit.

    With `n = num_values`, for each dimension

    ```
    inverse (data -> latent):  x = 2 y / n - 1
    forward (latent -> data):  y = (x + 1) n / 2
    ildj = sum(log(2 / n))
    ```

    The log det makes the result a density over pixel values, whose -log2 / D is bits/dim. Samples
    can lie anywhere: nothing bounds them.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> tfr.PixelScale().inverse(tf.constant([[[0., 128., 192.]]])).numpy().ravel().tolist()
    [-1.0, 0.0, 0.5]
    """

    def __init__(
        self,
        num_values: int = 256,
        *,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        name: str = "pixel_scale",
    ) -> None:
        """Constructs the bijector.

        Args:
          num_values: the number n of gray levels, at least 2.
          dtype: `tf.float32` or `tf.float64`.
          validate_args: whether to assert that values are finite.
          name: name of the operations.

        Raises:
          ValueError: if `num_values` is below 2.
          TypeError: if it is not a number, or `dtype` is not float32 or float64.
        """
        parameters = dict(locals())
        num_values = validation.integer(num_values, 2, f"{name}: expected at least 2 num_values")
        parameters["num_values"] = num_values
        with tf.name_scope(name):
            super().__init__(
                dtype=dtype,
                is_constant_jacobian=True,
                validate_args=validate_args,
                parameters=parameters,
                name=name,
            )

    # The properties of `PixelLogit`.

    @property
    def num_values(self) -> int:
        """The argument `num_values`: n."""
        return self.parameters["num_values"]

    @property
    def low(self) -> float:
        """The lower end of the data: there is none."""
        return -math.inf

    @property
    def high(self) -> float:
        """The upper end of the data: there is none."""
        return math.inf

    def _forward_and_log_det(self, x: tf.Tensor, **options: Any) -> tuple[tf.Tensor, tf.Tensor]:
        return (x + 1) * (self.num_values / 2), -self._ildj(x)

    def _inverse_and_log_det(self, y: tf.Tensor, **options: Any) -> tuple[tf.Tensor, tf.Tensor]:
        return y * (2 / self.num_values) - 1, self._ildj(y)

    def _ildj(self, value: tf.Tensor) -> tf.Tensor:
        channels = tf.cast(tf.shape(value)[-1], value.dtype)
        return self._log_det_of_positions(value, channels * math.log(2 / self.num_values))
