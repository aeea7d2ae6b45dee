"""Affine transformer whose scale is a sigmoid."""

from __future__ import annotations

import math

import tensorflow as tf

from tfp_realnvp.bijectors.transformers.transformer import Transformer

__all__ = ["SigmoidAffine"]


class SigmoidAffine(Transformer):
    r"""`z = (x + θ₁) · 2σ(θ₂)`: a scale between 0 and 2, which is 1 for parameters of zero.

    The log det of an element is `log 2 + log σ(θ₂)`. The scale has no lower bound.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> z, log_det = tfr.SigmoidAffine().inverse(tf.constant([[2.0]]), tf.constant([[1.0, 0.0]]))
    >>> z.numpy().tolist(), log_det.numpy().tolist()
    ([[3.0]], [[0.0]])

    #### References

    Kolesnikov, Pinto, Tschannen: Jet: a modern transformer-based normalizing flow.
    """

    num_parameters = 2

    def __init__(self) -> None:
        """Constructs the transformer."""
        super().__init__(name="sigmoid_affine")

    def inverse(self, x: tf.Tensor, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns z and the log of the scale."""
        shift, scale, log_scale = _shift_and_scale(parameters)
        return (x + shift) * scale, log_scale

    def forward(self, z: tf.Tensor, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns x and minus the log of the scale."""
        shift, scale, log_scale = _shift_and_scale(parameters)
        return z / scale - shift, -log_scale


def _shift_and_scale(parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns shift, scale, and the log of the scale, exact for small scales as well."""
    shift, logit = tf.split(parameters, 2, axis=-1)
    return shift, 2 * tf.sigmoid(logit), math.log(2) + tf.math.log_sigmoid(logit)
