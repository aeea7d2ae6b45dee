"""Activation normalization: a learned scale and shift of each channel."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.bijectors.call_context import Pass
from tfp_realnvp.bijectors.channel_normalization import ChannelNormalization, ChannelVariables
from tfp_realnvp.internal import private_api, replicas, validation

__all__ = ["ActNorm"]


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class LearnedAffine(ChannelVariables):
    """The trainable shift and log scale of each channel, and a flag that a batch has set them."""

    def build(self, input_shape: Any) -> None:
        """Creates the variables."""
        super().build(input_shape)
        self.shift = self._add("shift", [self.num_channels])
        self.log_scale = self._add("log_scale", [self.num_channels])
        self.is_set = self._add("is_set", [], trainable=False)

    @property
    def is_known_to_be_set(self) -> bool:
        """Whether a batch has set the variables; `False` if the values are unknown here."""
        if not self.built:
            return False
        with tf.init_scope():
            is_set = self.is_set.value
            # Within a `keras.StatelessScope` the value is a tensor, perhaps a symbolic one.
            is_known = isinstance(is_set, tf.Variable) and tf.executing_eagerly()
            return is_known and bool(is_set.numpy() > 0)

    def warn_if_unset(self) -> None:
        """Warns if a gradient tape records a pass before a batch has set the variables."""
        if private_api.could_possibly_record() and not self.is_known_to_be_set:
            warnings.warn(
                "ActNorm: no batch has set scale and shift, so training starts without "
                "normalization. `FlowModel.fit` sets them; in your own loop, call "
                "`flow.log_prob(x, bijector_kwargs={'training': True})` first.",
                UserWarning,
                stacklevel=2,
            )

    def set_once(self, images: tf.Tensor, epsilon: float, statistics: replicas.Statistics) -> None:
        """Sets the variables from the moments of `images`, unless a batch has set them."""
        if self.is_known_to_be_set:
            return
        mean, variance, _ = statistics.moments(tf.stop_gradient(images), shift=self.shift.value)
        values = mean, -0.5 * tf.math.log(variance + epsilon)
        # Skip moments that are not finite: no later batch would replace them.
        is_finite = tf.reduce_all(tf.math.is_finite(tf.concat(values, axis=0)))
        sets = is_finite & (self.is_set.value <= 0)
        values = *values, tf.ones([], mean.dtype)
        for variable, value in zip((self.shift, self.log_scale, self.is_set), values, strict=True):
            replicas.assign(variable, tf.where(sets, value, variable.value))


class ActNorm(ChannelNormalization):
    r"""An affine map of each channel: the first training batch initializes it, gradients train it.

    ```
    inverse (data -> latent):  x = (y - shift) * exp(log_scale)
    forward (latent -> data):  y = x * exp(-log_scale) + shift
    ildj = H W sum(log_scale)
    ```

    The first inverse pass with `training=True` sets `shift` and `log_scale` so that each channel of
    `x` has mean 0 and variance 1 over the batch and all positions. After this pass, training and
    evaluation use the same map.

    `FlowModel.fit` runs this pass before it traces the training step. In your own loop, call
    `flow.inverse(first_batch, training=True)` eagerly before you trace the training step: graphs
    traced afterwards assume that the variables are set. A graph traced earlier computes the moments
    in each step.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> bijector = tfr.ActNorm()
    >>> y = tf.random.normal([64, 8, 8, 3], mean=5., stddev=2.)
    >>> x = bijector.inverse(y, training=True)
    >>> bool(abs(tf.reduce_mean(x)) < 1e-3), bool(abs(tf.math.reduce_std(x) - 1) < 1e-2)
    (True, True)

    #### References

    Kingma, Dhariwal: Glow, section 3.1.
    """

    _shared_argument = "learned"

    def __init__(
        self,
        *,
        num_channels: int | None = None,
        epsilon: float = 1e-6,
        learned: LearnedAffine | None = None,
        event_ndims: int = 3,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        name: str = "act_norm",
    ) -> None:
        """Constructs the bijector.

        Args:
          num_channels: number of channels. With `None` the first call creates the variables.
          epsilon: added to the first batch's variance, positive.
          learned: the variables of another `ActNorm`, to share them.
          event_ndims, dtype, validate_args, name: as in `FlowBijector`.

        Raises:
          TypeError, ValueError: if an argument has a wrong type, or is not positive.
        """
        parameters = dict(locals())
        if learned is None:
            learned = parameters["learned"] = LearnedAffine(
                validation.float_dtype(dtype, name), name
            )
        super().__init__(learned, parameters)

    @property
    def learned(self) -> LearnedAffine:
        """The variables of the bijector."""
        return self._channels

    @property
    def variables_set_in_training(self) -> tuple[tf.Variable, ...]:
        """All variables before the first training batch, none afterwards."""
        return () if self._channels.is_known_to_be_set else super().variables_set_in_training

    def _forward_and_log_det(self, x: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        self._channels.create(x.shape[-1])
        log_scale = tf.convert_to_tensor(self._channels.log_scale.value)
        y = x * tf.exp(-log_scale) + self._channels.shift.value
        return y, self._log_det_of_positions(x, -tf.reduce_sum(log_scale), p)

    def _inverse_and_log_det(self, y: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        self.learned.create(y.shape[-1])
        if p.training:
            self._channels.set_once(y, self._epsilon, p.statistics)
        else:
            self.learned.warn_if_unset()
        shift = self._channels.shift.value
        log_scale = tf.convert_to_tensor(self._channels.log_scale.value)
        ildj = self._log_det_of_positions(y, tf.reduce_sum(log_scale), p)
        return (y - shift) * tf.exp(log_scale), ildj
