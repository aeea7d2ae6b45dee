"""Measures the same model in plain TFP, as a `tfb.Chain`.

The networks, masks, squeezes and the logit come from this package; the couplings and normalizations
do not. As in `tfb.RealNVP`, each method of a coupling evaluates the network again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr
from benchmarks.contenders.tf_contender import TFContender
from benchmarks.sizes import Size

__all__ = ["PlainTFP"]

tfb = tfp.bijectors
Mask = tfr.CheckerboardMask | tfr.ChannelMask


class PlainTFP(TFContender):
    """A `tfb.Chain`, trained by a `tf.function` with a gradient tape."""

    def __init__(self, size: Size) -> None:
        """Builds the model of a size."""
        self._mode = _Mode()
        self.couplings: list[_Coupling] = []
        flow = self._scale(size, 0, size.image_shape[-1], size.num_filters)
        weights = [v for c in self.couplings for v in c.network.trainable_variables]
        scales = [coupling.scale for coupling in self.couplings]
        super().__init__(
            size,
            tfb.Chain([tfr.PixelLogit(), *flow]),
            variables=[*(v.value for v in weights), *scales],
        )
        # The loss penalizes the scales of weight normalization and of tanh.
        self.scales = [*(v.value for v in weights if "scale" in v.name), *scales]
        self._optimizer = keras.optimizers.Adam(1e-3, global_clipnorm=100.0)
        self._optimizer.build(self.variables)
        self._train = tf.function(self._train_on)

    def _scale(self, size: Size, index: int, channels: int, filters: int) -> list[tfb.Bijector]:
        """Returns the bijectors of a scale and of all coarser scales, starting next to the data.

        The order is as in `RealNVPImage`.
        """
        is_last = index == size.num_scales - 1
        boards = [tfr.CheckerboardMask(i % 2) for i in range(4 if is_last else 3)]
        checkerboard = list(self._steps(size, boards, channels, filters))
        if is_last:
            return checkerboard
        halves = [tfr.ChannelMask(i % 2) for i in range(3)]
        channelwise = list(self._steps(size, halves, 4 * channels, 2 * filters))
        plain, ordered = tfr.Squeeze(), tfr.Squeeze(order="factor_out")
        following = tfb.Chain(self._scale(size, index + 1, 2 * channels, 2 * filters))
        return [
            *checkerboard,
            tfb.Invert(plain),
            *channelwise,
            plain,
            tfb.Invert(ordered),
            tfb.Blockwise([following, tfb.Identity()], [2 * channels, 2 * channels]),
            ordered,
        ]

    def _steps(
        self, size: Size, masks: list[Mask], channels: int, filters: int
    ) -> Iterator[tfb.Bijector]:
        for mask in masks:
            coupling = _Coupling(mask, channels, size.num_blocks, filters, self._mode)
            self.couplings.append(coupling)
            yield coupling
            yield _Normalization(channels, self._mode)

    def _train_on(self, images: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            self._mode.training = True
            nll = self.noisy_nll(images)
            self._mode.training = False
            squares = [tf.reduce_sum(tf.square(scale)) for scale in self.scales]
            loss = nll + 5e-5 * tf.add_n(squares)
        self._optimizer.apply(tape.gradient(loss, self.variables), self.variables)
        return nll

    def train_step(self, images: np.ndarray) -> float:
        """Runs one training step, a call of the `tf.function`."""
        return float(self._train(images))


class _Mode:
    """Whether bijectors are traced for training. `tfb.Chain` does not pass `training` to them."""

    training = False


class _ImageBijector(tfb.Bijector):
    def __init__(self, **parameters: Any) -> None:
        # Parameters must differ: TFP shares a cache among bijectors of equal type and parameters.
        super().__init__(forward_min_event_ndims=3, dtype=tf.float32, parameters=parameters)

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict[str, Any]:
        return {}


class _Coupling(_ImageBijector):
    """An affine coupling whose methods each evaluate the network."""

    def __init__(
        self, mask: Mask, channels: int, num_blocks: int, num_filters: int, mode: _Mode
    ) -> None:
        parity = mask.parity if isinstance(mask, tfr.CheckerboardMask) else None
        changed = channels if isinstance(mask, tfr.CheckerboardMask) else channels // 2
        self.network = tfr.ConvResNet(
            2 * changed, num_blocks, num_filters, checkerboard_parity=parity
        )
        self.network.build((None, None, None, changed))
        self.scale = tf.Variable(1.0)
        self._mask, self._mode = mask, mode
        super().__init__(network=self.network)

    def _shift_and_log_scale(self, kept: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # With a checkerboard, the output of the network is 0 at the unchanged positions.
        output = self.network(kept, training=self._mode.training)
        shift, log_scale = tf.split(output, 2, axis=-1)
        return shift, self.scale * tf.tanh(log_scale)

    def _forward(self, x: tf.Tensor) -> tf.Tensor:
        kept, changed = self._mask.split(x)
        shift, log_scale = self._shift_and_log_scale(kept)
        return self._mask.merge(kept, (changed - shift) * tf.exp(-log_scale))

    def _inverse(self, y: tf.Tensor) -> tf.Tensor:
        kept, changed = self._mask.split(y)
        shift, log_scale = self._shift_and_log_scale(kept)
        return self._mask.merge(kept, changed * tf.exp(log_scale) + shift)

    def _inverse_log_det_jacobian(self, y: tf.Tensor) -> tf.Tensor:
        kept, _ = self._mask.split(y)
        return tf.reduce_sum(self._shift_and_log_scale(kept)[1], axis=[-3, -2, -1])


class _Normalization(_ImageBijector):
    """Batch normalization of a coupling's output by the moving statistics (Appendix E)."""

    def __init__(self, channels: int, mode: _Mode) -> None:
        self._mean = tf.Variable(tf.zeros([channels]), trainable=False)
        self._variance = tf.Variable(tf.ones([channels]), trainable=False)
        self._mode = mode
        super().__init__(mean=self._mean)

    def _moments(self, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        moving = self._mean, self._variance
        if not self._mode.training:
            return moving
        batch = tf.nn.moments(y, axes=[0, 1, 2])
        mean, variance = (0.9 * old + 0.1 * new for old, new in zip(moving, batch, strict=True))
        return mean, variance

    def _forward(self, x: tf.Tensor) -> tf.Tensor:
        return x * tf.sqrt(self._variance + 1e-4) + self._mean

    def _inverse(self, y: tf.Tensor) -> tf.Tensor:
        mean, variance = self._moments(y)
        return (y - mean) * tf.math.rsqrt(variance + 1e-4)

    def _inverse_log_det_jacobian(self, y: tf.Tensor) -> tf.Tensor:
        mean, variance = self._moments(y)
        if self._mode.training:
            # `log_prob` calls `_inverse` first. An update there would change the moments before
            # this method uses them.
            self._mean.assign(mean)
            self._variance.assign(variance)
        positions = y.shape[-3] * y.shape[-2]
        return -0.5 * positions * tf.reduce_sum(tf.math.log(variance + 1e-4))
