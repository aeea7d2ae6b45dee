"""Additive transformer."""

from __future__ import annotations

import tensorflow as tf

from tfp_realnvp.bijectors.transformers.transformer import Transformer

__all__ = ["Additive"]


class Additive(Transformer):
    """`z = x + θ`, with a log det of zero.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> z, _ = tfr.Additive().inverse(tf.constant([2.0]), tf.constant([1.0]))
    >>> z.numpy().tolist()
    [3.0]

    #### References

    Dinh, Krueger, Bengio: NICE, section 3.2.
    """

    num_parameters = 1
    is_identity_at_zero = True
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
