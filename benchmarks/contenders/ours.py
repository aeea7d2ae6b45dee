"""Measures this package, used as its documentation shows.

A row may measure another checkout, so this module uses only names that other versions also have.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfp_realnvp as tfr
from benchmarks.batches import training_batches
from benchmarks.contenders.tf_contender import TFContender
from benchmarks.sizes import Size

__all__ = ["Ours"]


class Ours(TFContender):
    """`RealNVPImage` in a `FlowModel`, trained by the function that `fit` calls."""

    def __init__(
        self,
        size: Size,
        *,
        policy: str = "float32",
        compact: bool = False,
        equal_widths: bool = False,
        jit_compile: bool = False,
        first_batch_size: int | None = None,
        **model_options: Any,
    ) -> None:
        """Builds the model.

        Args:
          size: the architecture and the batch size.
          policy: the Keras dtype policy, `'float32'` or `'mixed_bfloat16'`.
          compact: whether to build `RealNVPImage.compact` instead of the architecture of `size`.
          equal_widths: whether all scales have as many feature maps as the first scale.
          jit_compile: whether XLA compiles training, `log_prob` and `sample`.
          first_batch_size: number of images in the first training step. A first step on one image
            separates the memory of the graph from the memory of activations. Defaults to the batch
            size.
          **model_options: more arguments of `RealNVPImage`, or of `multi_scale`.
        """
        keras.config.set_dtype_policy(policy)
        if compact:
            bijector = tfr.RealNVPImage.compact(size.image_shape, **model_options)
        elif equal_widths:
            network_fn = tfr.network_of(tfr.ConvResNet, num_blocks=size.num_blocks)
            layer = tfr.coupling_layer(network_fn, size.num_filters, normalization="batch")
            options = {"pixels": tfr.PixelLogit(), **model_options}
            bijector = tfr.multi_scale(size.image_shape, size.num_scales, layer, **options)
        else:
            architecture = (size.image_shape, size.num_scales, size.num_blocks, size.num_filters)
            bijector = tfr.RealNVPImage(*architecture, **model_options)
        super().__init__(size, bijector, jit_compile=jit_compile)
        self.model = tfr.FlowModel(self.distribution)
        # The other contenders use the same optimizer.
        adam = tfr.FusedAdam(1e-3, global_clipnorm=100.0)
        self.model.compile(adam, jit_compile=jit_compile)
        self._train_function = self.model.make_train_function()
        batches = training_batches(self.images, size.batch_size)
        if first_batch_size is not None:
            # With an unknown batch size, one graph serves a single image and the full batch.
            first = tf.data.Dataset.from_tensors(self.images[:first_batch_size])
            batches = first.concatenate(batches)
        self._batches = iter(batches)

    def train_step(self, images: np.ndarray) -> float:
        """Makes one step of `fit`'s train function."""
        return float(self._train_function(iter(tf.data.Dataset.from_tensors(images)))["loss"])

    def train(self, steps: int) -> float:
        """Makes steps as `fit` does."""
        for _ in range(steps):
            logs = self._train_function(self._batches)
        return float(logs["loss"])
