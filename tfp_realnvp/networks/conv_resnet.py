"""The paper's conditioner: a weight-normalised convolutional ResNet with skip connections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp import checks
from tfp_realnvp.masks import CheckerboardMask
from tfp_realnvp.networks.batch_norm import BatchNorm
from tfp_realnvp.networks.conditioner import Conditioner
from tfp_realnvp.networks.weight_norm_conv import (
    WeightNormConv2D,
    convolve,
    normalized_at_once,
)

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
    one more channel. Its output is zero where the coupling keeps the image.

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
          ValueError: if a number is out of range.
          TypeError: if one of them is no number.
        """
        super().__init__(**kwargs)
        output_channels, num_blocks, num_filters = (
            checks.integer(
                value, at_least, f"{self.name}: expected {argument} of at least {at_least}"
            )
            for argument, value, at_least in (
                ("output_channels", output_channels, 1),
                ("num_blocks", num_blocks, 0),
                ("num_filters", num_filters, 1),
            )
        )
        checks.finite(output_scale, 0, f"{self.name}: expected a finite output_scale of at least 0")
        checks.momentum(momentum, self.name)
        checks.positive(epsilon, f"{self.name}: expected a positive epsilon")
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

    def call(
        self,
        inputs: tf.Tensor,
        training: bool = False,
        checkerboard_parity: int | tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns [B, H, W, output_channels] for inputs [B, H, W, C].

        Args:
          inputs: images.
          training: normalise by batch statistics, and update the moving ones.
          checkerboard_parity: another one than the layer's, for this call; may be a tensor.
        """
        mask = self._mask if checkerboard_parity is None else CheckerboardMask(checkerboard_parity)
        convs = [each for each in self._flatten_layers() if isinstance(each, WeightNormConv2D)]
        with normalized_at_once(convs):
            return self._call(inputs, training, mask)

    def _call(self, inputs: tf.Tensor, training: bool, mask: CheckerboardMask | None) -> tf.Tensor:
        h = self.input_conv(self._both_signs(inputs, training, mask))
        if training:
            skips = sum(convolve(*skip) for skip in self._skips(h, training=True))
            return self._output(self.output_norm(skips, training=True), mask)
        # By moving statistics, normalising what convolutions give only changes their kernels.
        skips = self._skips(h, False, *self.output_norm.factor_and_shift())
        if mask is None or not mask.is_static or not _has_cells(inputs.shape):
            return self._output(sum(convolve(*skip) for skip in skips), mask)
        kernel_and_bias = self.output_conv.kernel_and_bias()
        halves = map(tf.nn.relu, _at_changed_positions(mask, list(skips)))
        return mask.put_changed([convolve(half, *kernel_and_bias) for half in halves])

    def _output(self, skips: tf.Tensor, mask: CheckerboardMask | None) -> tf.Tensor:
        outputs = self.output_conv(tf.nn.relu(skips))
        return outputs if mask is None else mask.restrict(outputs)

    def _both_signs(
        self, inputs: tf.Tensor, training: bool, mask: CheckerboardMask | None
    ) -> tf.Tensor:
        doubled = 1.0 if mask is None else 2.0
        if training:
            x = doubled * self.input_norm(inputs, training=True)
            x = tf.concat([x, -x], axis=-1)
        else:
            factor, shift = (doubled * s for s in self.input_norm.factor_and_shift())
            signs = tf.linalg.diag(factor)
            kernel = tf.concat([signs, -signs], axis=-1)[tf.newaxis, tf.newaxis]
            x = convolve(inputs, kernel, tf.concat([shift, -shift], axis=-1))
        x = tf.nn.relu(x)
        if mask is None:
            return x
        board = tf.broadcast_to(mask.board(x), tf.shape(x[..., :1]))
        return tf.concat([x, board], axis=-1)

    def _skips(
        self,
        h: tf.Tensor,
        training: bool,
        factor: tf.Tensor | None = None,
        shift: tf.Tensor | None = None,
    ) -> Iterator[tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
        """Yields maps, kernels and biases, whose convolutions add up to the output's input."""
        skip_kernel, skip_bias = self.input_skip.kernel_and_bias(factor, shift)
        for i, (norm1, conv1, norm2, conv2, skip) in enumerate(self.blocks, start=1):
            residual = tf.nn.relu(norm1(h, training=training))
            if training:
                residual = norm2(conv1(residual), training=True)
            else:
                residual = convolve(residual, *conv1.kernel_and_bias(*norm2.factor_and_shift()))
            residual = tf.nn.relu(residual)
            kernel, bias = skip.kernel_and_bias(factor)
            if i == self.num_blocks and self._joins_last(h):
                # skip(h + conv(residual)) is linear: both skips of h are one, and that of the
                # residual is part of its convolution.
                yield h, skip_kernel + kernel, skip_bias + bias
                joined, joined_bias = conv2.kernel_and_bias()
                bias = tf.linalg.matvec(kernel[0, 0], joined_bias, transpose_a=True)
                yield residual, tf.tensordot(joined, kernel[0, 0], 1), bias
                return
            yield h, skip_kernel, skip_bias
            h += conv2(residual)
            skip_kernel, skip_bias = kernel, bias
        yield h, skip_kernel, skip_bias

    def _joins_last(self, h: tf.Tensor) -> bool:
        # To join kernels costs as much as a 1x1 convolution at 9 * num_filters positions, of all
        # images together: a batch of five is enough.
        positions = h.shape[1:3].num_elements()
        return positions is not None and positions >= 2 * self.num_filters

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


def _has_cells(shape: tf.TensorShape) -> bool:
    """Returns whether images of this shape surely consist of 2×2 cells."""
    return all(side is not None and side % 2 == 0 for side in shape[1:3])


def _at_changed_positions(
    mask: CheckerboardMask, skips: list[tuple[tf.Tensor, ...]]
) -> list[tf.Tensor]:
    # The coupling asks for no others, half of the image, and they are computed by themselves.
    pointwise = [skip for skip in skips if skip[1].shape[0] == 1]
    maps, kernels, biases = zip(*pointwise, strict=True)
    kernel, bias = tf.concat(kernels, axis=2), sum(biases)
    halves = []
    for (i, j), *taken in zip(mask.changed_in_cell, *map(mask.take_changed, maps), strict=True):
        half = convolve(tf.concat(taken, axis=-1), kernel, bias)
        padding = [[0, 0], [1 - i, i], [1 - j, j], [0, 0]]
        halves.append(sum((convolve(*skip, 2, padding) for skip in skips[len(pointwise) :]), half))
    return halves
