"""Measures `tfb.Glow`, TFP's own flow for images."""

from __future__ import annotations

import functools
import math

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr
from benchmarks.contenders.tf_contender import TFContender
from benchmarks.sizes import Size, multiply_adds

__all__ = ["Glow"]

tfb = tfp.bijectors


class Glow(TFContender):
    """`tfb.Glow` on the logits of noisy pixels, trained by a `tf.function` with Adam."""

    def __init__(
        self,
        size: Size,
        *,
        num_blocks: int = 3,
        num_steps: int = 10,
        num_hidden: int | None = None,
    ) -> None:
        """Builds the model.

        Args:
          size: gives the image shape and the batch size.
          num_blocks: blocks of Glow, each at half the resolution of the previous one.
          num_steps: steps of each block.
          num_hidden: feature maps of the hidden layers. With `None`, one pass needs as many
            multiply-adds as the Real NVP of this size.
        """
        if num_hidden is None:
            num_hidden = _hidden_of_similar_cost(size, num_blocks, num_steps)
        glow = tfb.Glow(
            output_shape=size.image_shape,
            num_glow_blocks=num_blocks,
            num_steps_per_block=num_steps,
            coupling_bijector_fn=functools.partial(tfb.GlowDefaultNetwork, num_hidden=num_hidden),
            exit_bijector_fn=tfb.GlowDefaultExitNetwork,
            seed=0,
        )
        super().__init__(size, tfb.Chain([tfr.PixelLogit(), glow]))
        self._optimizer = keras.optimizers.Adam(1e-3)
        self._optimizer.build(self.variables)
        self._train = tf.function(self._train_on)

    def _train_on(self, images: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = self.noisy_nll(images)
        self._optimizer.apply(tape.gradient(loss, self.variables), self.variables)
        return loss

    def train_step(self, images: np.ndarray) -> float:
        """Makes one step of the `tf.function`."""
        return float(self._train(images))


def _hidden_of_similar_cost(size: Size, num_blocks: int, num_steps: int) -> int:
    """Returns the number of hidden maps for which Glow needs as many multiply-adds as Real NVP."""
    # The networks, a 3×3, a 1×1 and a 3×3 convolution, need quadratic * hidden² + linear * hidden
    # multiply-adds.
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
