"""The paper's conditioner: a weight-normalised convolutional ResNet with skip connections."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.masks import CheckerboardMask
from tfp_realnvp.networks.batch_norm import BatchNorm
from tfp_realnvp.networks.conditioner import Conditioner
from tfp_realnvp.networks.weight_norm_conv import WeightNormConv2D

__all__ = ["ConvResNet"]


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class ConvResNet(Conditioner):
    r"""Residual blocks of 3×3 convolutions, with a 1×1 skip connection from each to the output.

    ```
    input:   x -> BN, concatenated with its negative (and the mask), ReLU, 3×3 convolution
    block:   h -> h + conv(ReLU(BN(conv(ReLU(BN(h))))))
    output:  sum of 1×1 convolutions of the input's and of each block's h -> BN, ReLU, 1×1
    ```

    Every convolution is weight-normalised; batch normalisation has no scale. For a checkerboard
    coupling half of the input is zero: the normalised input is doubled, and the board goes in as
    one more channel.

    #### Example

    >>> import tensorflow as tf
    >>> network = ConvResNet(6, num_blocks=2, num_filters=16, checkerboard_parity=0)
    >>> network(tf.ones([2, 8, 8, 3])).shape
    TensorShape([2, 8, 8, 6])

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, section 3.7 and 4.1; details as
    in the authors' code.
    """

    def __init__(
        self,
        output_channels: int,
        num_blocks: int = 4,
        num_filters: int = 32,
        *,
        checkerboard_parity: int | None = None,
        output_scale: float = 0.1,
        momentum: float = 0.9,
        epsilon: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        """Constructs the network.

        Args:
          output_channels: channels of the output.
          num_blocks: number of residual blocks.
          num_filters: feature maps of each convolution but the last.
          checkerboard_parity: of the coupling's `CheckerboardMask`; `None` for channel-wise ones.
          output_scale: what the norms of the last convolution's filters start with; small, so that
            a coupling starts near the identity and the first steps of training are calm.
          momentum: of the moving statistics of batch normalisation.
          epsilon: added to the variance.
          **kwargs: `name`, `dtype`, as in `keras.layers.Layer`.

        Raises:
          ValueError: if a number is not positive.
        """
        super().__init__(**kwargs)
        if output_channels < 1 or num_filters < 1 or num_blocks < 0:
            raise ValueError(
                f"{self.name}: expected positive output_channels and num_filters and num_blocks of "
                f"at least 0, got {output_channels}, {num_filters} and {num_blocks}."
            )
        self.output_channels = output_channels
        self.num_blocks = num_blocks
        self.num_filters = num_filters
        self.checkerboard_parity = checkerboard_parity
        self.output_scale = output_scale
        self.momentum = momentum
        self.epsilon = epsilon

        self._mask = None if checkerboard_parity is None else CheckerboardMask(checkerboard_parity)
        self.input_norm = self._norm("input_norm")
        self.input_conv = self._conv(num_filters, 3, "input_conv")
        self.input_skip = self._conv(num_filters, 1, "input_skip")
        self.blocks = [
            (
                self._norm(f"block{i}_norm1"),
                self._conv(num_filters, 3, f"block{i}_conv1", use_bias=False),
                self._norm(f"block{i}_norm2"),
                self._conv(num_filters, 3, f"block{i}_conv2"),
                self._conv(num_filters, 1, f"block{i}_skip"),
            )
            for i in range(num_blocks)
        ]
        self.output_norm = self._norm("output_norm")
        self.output_conv = self._conv(output_channels, 1, "output_conv", initial_scale=output_scale)

    def _norm(self, name: str) -> keras.layers.Layer:
        return BatchNorm(
            momentum=self.momentum, epsilon=self.epsilon, dtype=self.dtype_policy, name=name
        )

    def _conv(self, filters: int, size: int, name: str, **kwargs: Any) -> WeightNormConv2D:
        return WeightNormConv2D(filters, size, dtype=self.dtype_policy, name=name, **kwargs)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the variables for inputs of `input_shape`, [B, H, W, C]."""
        image = tuple(input_shape[:-1])
        channels, hidden = input_shape[-1], (*image, self.num_filters)
        self.input_norm.build((*image, channels))
        doubled = 2 * channels + (self._mask is not None)
        self.input_conv.build((*image, doubled))
        self.input_skip.build(hidden)
        for block in self.blocks:
            for layer in block:
                layer.build(hidden)
        self.output_norm.build(hidden)
        self.output_conv.build(hidden)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns [B, H, W, output_channels] for inputs [B, H, W, C]."""
        x = self.input_norm(inputs, training=training)
        if self._mask is None:
            x = tf.concat([x, -x], axis=-1)
        else:
            board = tf.broadcast_to(self._mask.board(x), tf.shape(x[..., :1]))
            x = tf.concat([2 * x, -2 * x, board], axis=-1)
        h = self.input_conv(tf.nn.relu(x))
        through = self._train if training else self._infer
        return self.output_conv(tf.nn.relu(through(h)))

    def _train(self, h: tf.Tensor) -> tf.Tensor:
        skips = self.input_skip(h)
        for norm1, conv1, norm2, conv2, skip in self.blocks:
            residual = conv1(tf.nn.relu(norm1(h, training=True)))
            h += conv2(tf.nn.relu(norm2(residual, training=True)))
            skips += skip(h)
        return self.output_norm(skips, training=True)

    def _infer(self, h: tf.Tensor) -> tf.Tensor:
        # By moving statistics, normalising what convolutions give only changes their kernels.
        factor, shift = self.output_norm.factor_and_shift()
        skips = self.input_skip.convolve(h, factor, shift)
        for norm1, conv1, norm2, conv2, skip in self.blocks:
            residual = conv1.convolve(tf.nn.relu(norm1(h)), *norm2.factor_and_shift())
            h += conv2(tf.nn.relu(residual))
            skips += skip.convolve(h, factor)
        return skips

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the shape of the output for that of an input."""
        return (*input_shape[:-1], self.output_channels)

    def get_config(self) -> dict[str, Any]:
        """Returns what `from_config` needs."""
        return {
            **super().get_config(),
            "output_channels": self.output_channels,
            "num_blocks": self.num_blocks,
            "num_filters": self.num_filters,
            "checkerboard_parity": self.checkerboard_parity,
            "output_scale": self.output_scale,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
        }
