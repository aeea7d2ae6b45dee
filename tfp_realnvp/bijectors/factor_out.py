"""Factors out half of the dimensions, for the multi-scale architecture."""

import functools
from typing import Any

import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfp_realnvp.bijectors.flow_bijector import FlowBijector, Mapped, Pass
from tfp_realnvp.bijectors.flow_chain import accepts_conditional_input, call_part, condition_spec_of


class FactorOut(FlowBijector):
    r"""Applies a bijector to the first half of the channels. The second half stays unchanged.

    ```
    (h, z) = split(image);    inverse: concat(bijector.inverse(h), z)
                              forward: concat(bijector.forward(h), z)
    ildj = ildj of the inner bijector at h
    ```

    After `Squeeze(order='factor_out')` the first half of the channels holds a checkerboard of the
    image's pixels. The inner bijector must keep the shape of its input.

    #### Example

    >>> import tensorflow as tf, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> y = tfr.FactorOut(tfp.bijectors.Scale(10.)).forward(tf.ones([1, 1, 4]))
    >>> y.numpy().ravel().tolist()
    [10.0, 10.0, 1.0, 1.0]

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, section 3.6, eq. 13 to 16.
    """

    def __init__(
        self,
        bijector: tfb.Bijector,
        *,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        name: str = "factor_out",
    ) -> None:
        """Constructs the bijector.

        Args:
          bijector: bijector on the first half, [..., H, W, C/2], that keeps the shape.
          dtype, validate_args, name: as in `FlowBijector`.
        """
        parameters = dict(locals())
        self.bijector = bijector
        self._condition_spec = condition_spec_of(bijector)
        self.accepts_conditional_input = accepts_conditional_input(bijector)
        super().__init__(is_constant_jacobian=bijector.is_constant_jacobian, parameters=parameters)

    def _check_event_shape(self, shape: tf.TensorShape, inverse: bool) -> None:
        if shape[-1] is None or shape[-1] % 2:
            raise ValueError(f"{self.name}: expected an even number of channels, got {shape}.")

    def _pass(self, value: tf.Tensor, p: Pass, inverse: bool) -> Mapped:
        h, z = tf.split(value, 2, axis=-1)
        h, log_det = call_part(self.bijector, h, p, inverse, self.event_ndims)
        return tf.concat([h, z], axis=-1), log_det

    _forward_and_log_det = functools.partialmethod(_pass, inverse=False)
    _inverse_and_log_det = functools.partialmethod(_pass, inverse=True)
