"""Defines the base class of the contenders in TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from benchmarks.contenders.contender import Contender
from benchmarks.sizes import Size

__all__ = ["TFContender"]

tfd = tfp.distributions


class TFContender(Contender):
    """A flow from a standard normal distribution to pixel values, evaluated by `tf.function`s."""

    def __init__(
        self,
        size: Size,
        bijector: tfp.bijectors.Bijector,
        *,
        variables: Sequence[tf.Variable] | None = None,
        jit_compile: bool = False,
    ) -> None:
        super().__init__(size)
        latent_shape = bijector.inverse_event_shape(size.image_shape)
        base = tfd.Sample(tfd.Normal(0.0, 1.0), latent_shape)
        self.distribution = tfd.TransformedDistribution(base, bijector)
        # TFP finds the variables of Keras layers only if a bijector exposes them.
        self.variables = self.distribution.trainable_variables if variables is None else variables
        self.num_parameters = sum(int(np.prod(v.shape)) for v in self.variables)
        compiled = tf.function(jit_compile=jit_compile)
        self._log_prob = compiled(self.distribution.log_prob)
        self._sample = compiled(lambda: self.distribution.sample(size.batch_size))

    def log_prob(self, values: np.ndarray) -> np.ndarray:
        """Returns `distribution.log_prob`."""
        return self._log_prob(tf.constant(values)).numpy()

    def sample(self) -> np.ndarray:
        """Returns `distribution.sample(batch_size)`."""
        return self._sample().numpy()

    def noisy_nll(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the mean -log p of `uint8` images plus uniform noise."""
        values = tf.cast(images, tf.float32) + tf.random.uniform(tf.shape(images))
        return -tf.reduce_mean(self.distribution.log_prob(values))
