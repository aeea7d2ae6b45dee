"""`tfb.Glow`, TFP's own flow for images."""

from __future__ import annotations

import functools
import math

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability.python.internal import tf_keras

import tfp_realnvp as tfr
from benchmarks.contenders.contender import Contender
from benchmarks.sizes import Size, multiply_adds

__all__ = ["Glow", "hidden_of_similar_cost"]

tfb = tfp.bijectors
tfd = tfp.distributions


class Glow(Contender):
    """`tfb.Glow` on the logits of noisy pixels, trained by a `tf.function` with Adam."""

    def __init__(
        self,
        size: Size,
        images: np.ndarray | None = None,
        *,
        num_blocks: int = 3,
        num_steps: int = 10,
        num_hidden: int | None = None,
        jit_compile: bool = False,
    ) -> None:
        """Builds the model.

        Args:
          size: gives the image shape and the batch size.
          images: to measure on.
          num_blocks: blocks of Glow, each at half of the resolution of the one before.
          num_steps: steps of each block.
          num_hidden: hidden maps of its default networks; `None` takes as many as make a pass
            through all networks cost what it does in the Real NVP of this size.
          jit_compile: whether XLA compiles the three functions.
        """
        super().__init__(size, images)
        if num_hidden is None:
            num_hidden = hidden_of_similar_cost(size, num_blocks, num_steps)
        self.num_hidden = num_hidden
        glow = tfb.Glow(
            output_shape=size.image_shape,
            num_glow_blocks=num_blocks,
            num_steps_per_block=num_steps,
            coupling_bijector_fn=functools.partial(tfb.GlowDefaultNetwork, num_hidden=num_hidden),
            exit_bijector_fn=tfb.GlowDefaultExitNetwork,
            seed=0,
        )
        base = tfd.Sample(tfd.Normal(0.0, 1.0), glow.inverse_event_shape(size.image_shape))
        self.distribution = tfd.TransformedDistribution(base, tfb.Chain([tfr.PixelLogit(), glow]))
        self._variables = self.distribution.trainable_variables
        self._optimizer = tf_keras.optimizers.Adam(1e-3)
        self._optimizer.build(self._variables)
        compiled = tf.function(jit_compile=jit_compile)
        self._train = compiled(self._train_on)
        self._log_prob = compiled(self._log_prob_of)
        self._sample = compiled(lambda: self.distribution.sample(size.batch_size))
        self._values = tf.constant(self.images, tf.float32) + 0.5

    def _train_on(self, images: tf.Tensor) -> tf.Tensor:
        values = tf.cast(images, tf.float32) + tf.random.uniform(tf.shape(images))
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(self.distribution.log_prob(values))
        gradients = tape.gradient(loss, self._variables)
        self._optimizer.apply_gradients(zip(gradients, self._variables, strict=True))
        return loss

    def _log_prob_of(self, values: tf.Tensor) -> tf.Tensor:
        return self.distribution.log_prob(values)

    def train_on(self, images: np.ndarray) -> float:
        """Makes one step of the `tf.function`."""
        return float(self._train(images))

    def log_prob(self) -> np.ndarray:
        """Returns `distribution.log_prob` of the batch."""
        return self._log_prob(self._values).numpy()

    def sample(self) -> np.ndarray:
        """Returns `distribution.sample(batch_size)`."""
        return self._sample().numpy()

    def score(self, images: np.ndarray) -> np.ndarray:
        """Returns `distribution.log_prob` of noisy images."""
        noise = np.random.default_rng(0).random(images.shape, np.float32)
        return self._log_prob(tf.constant(images + noise)).numpy()

    @property
    def num_parameters(self) -> int:
        """The number of trainable numbers."""
        return sum(int(np.prod(v.shape)) for v in self._variables)


def hidden_of_similar_cost(size: Size, num_blocks: int, num_steps: int) -> int:
    """Returns the hidden maps with which Glow's networks make as many multiply-adds."""
    # Of a step: quadratic * hidden² + linear * hidden, by 3×3, 1×1 and 3×3 convolutions.
    quadratic = linear = 0
    height, width, channels = size.image_shape
    for _ in range(num_blocks):
        height, width, channels = height // 2, width // 2, 4 * channels
        quadratic += height * width
        linear += height * width * 9 * (channels // 2 + channels)
        channels //= 2
    cost = multiply_adds(size) / num_steps
    root = math.sqrt(linear**2 + 4 * quadratic * cost)
    return max(1, round((root - linear) / (2 * quadratic)))
