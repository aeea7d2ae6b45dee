"""This package, as its users run it."""

from __future__ import annotations

import inspect
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr
from benchmarks.contenders.contender import Contender, NotAvailable
from benchmarks.sizes import Size
from tfp_realnvp.data.image_dataset import image_dataset

__all__ = ["Ours"]

tfd = tfp.distributions


class Ours(Contender):
    """`RealNVPImage` in a `FlowModel`, trained by the function that `fit` calls."""

    def __init__(
        self,
        size: Size,
        images: np.ndarray | None = None,
        *,
        policy: str = "float32",
        jit_compile: bool = False,
        first_batch_size: int | None = None,
        **model_options: Any,
    ) -> None:
        """Builds the model.

        Args:
          size: the architecture and the batch size.
          images: to measure on.
          policy: the Keras dtype policy, `'float32'` or `'mixed_bfloat16'`.
          jit_compile: whether XLA compiles the three functions.
          first_batch_size: the number of images of the very first training step, which tells
            memory for the graph from memory for activations; `None` is the batch size.
          **model_options: more arguments of `RealNVPImage`.

        Raises:
          NotAvailable: if `RealNVPImage` has no argument of that name.
        """
        super().__init__(size, images)
        known = inspect.signature(tfr.RealNVPImage.__init__).parameters
        for option in model_options:
            if option not in known:
                raise NotAvailable(f"RealNVPImage has no argument {option!r}")
        keras.config.set_dtype_policy(policy)
        self.distribution = tfd.TransformedDistribution(
            tfd.Sample(tfd.Normal(0.0, 1.0), size.image_shape),
            tfr.RealNVPImage(
                size.image_shape,
                size.num_scales,
                size.num_blocks,
                size.num_filters,
                **model_options,
            ),
        )
        self.model = tfr.FlowModel(self.distribution)
        self.model.compile(jit_compile=jit_compile)
        self._train_function = self.model.make_train_function()
        self._iterator = iter(self._dataset(first_batch_size))
        compiled = tf.function(jit_compile=jit_compile)
        self._log_prob = compiled(self.distribution.log_prob)
        self._sample = compiled(lambda: self.distribution.sample(size.batch_size))
        self._values = tf.constant(self.images, tf.float32) + 0.5

    def _dataset(self, first_batch_size: int | None) -> tf.data.Dataset:
        batches = image_dataset(
            self.images, len(self.images), shuffle=True, repeat=True, drop_remainder=True
        )
        if first_batch_size is not None:
            # An unknown batch size: one graph serves both.
            first = tf.data.Dataset.from_tensors(self.images[:first_batch_size])
            batches = first.concatenate(batches)
        return batches

    def train_on(self, images: np.ndarray) -> float:
        """Makes one step of `fit`'s train function."""
        iterator = iter(tf.data.Dataset.from_tensors(images))
        return float(self._train_function(iterator)["loss"])

    def train_step(self) -> float:
        """Makes one step on the next batch of the package's own pipeline."""
        return self.train_steps(1)

    def train_steps(self, steps: int) -> float:
        """Makes steps as `fit` does, which looks at the last one's loss only."""
        for _ in range(steps):
            logs = self._train_function(self._iterator)
        return float(logs["loss"])

    def log_prob(self) -> np.ndarray:
        """Returns `distribution.log_prob` of the batch."""
        return self._log_prob(self._values).numpy()

    def sample(self) -> np.ndarray:
        """Returns `distribution.sample(batch_size)`."""
        return self._sample().numpy()

    def score(self, images: np.ndarray) -> np.ndarray:
        """Returns what `predict` says of the images."""
        return self.model.predict(images, batch_size=self.size.batch_size, verbose=0)

    @property
    def num_parameters(self) -> int:
        """The number of trainable numbers."""
        return sum(int(np.prod(v.shape)) for v in self.distribution.trainable_variables)
