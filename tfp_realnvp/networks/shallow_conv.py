"""A small conditioner: three convolutions."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp import checks
from tfp_realnvp.masks import CheckerboardMask
from tfp_realnvp.networks.conditioner import Conditioner

__all__ = ["ShallowConv"]


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class ShallowConv(Conditioner):
    r"""3×3, 1×1 and 3×3 convolutions with ReLU between, the last one starting at zero.

    A coupling with it starts as the identity, so that many of them can be stacked and trained from
    the first step at a high learning rate. For a checkerboard coupling the board goes in as one
    more channel.

    #### Example

    >>> import tensorflow as tf
    >>> network = ShallowConv(6, num_filters=16, checkerboard_parity=0)
    >>> network(tf.ones([2, 8, 8, 3])).shape
    TensorShape([2, 8, 8, 6])

    #### References

    Kingma, Dhariwal: Glow, section 3.3 and table 1, for the shape of the network and its start.
    """

    def __init__(
        self,
        output_channels: int,
        num_filters: int = 64,
        *,
        checkerboard_parity: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Constructs the network.

        Args:
          output_channels: channels of the output.
          num_filters: feature maps of the first two convolutions.
          checkerboard_parity: of the coupling's `CheckerboardMask`; `None` for channel-wise ones.
          **kwargs: `name`, `dtype`, as in `keras.layers.Layer`.

        Raises:
          ValueError: if a number is not positive.
          TypeError: if one of them is no number.
        """
        super().__init__(**kwargs)
        output_channels, num_filters = (
            checks.integer(value, 1, f"{self.name}: expected {argument} of at least 1")
            for argument, value in (
                ("output_channels", output_channels),
                ("num_filters", num_filters),
            )
        )
        self.output_channels = output_channels
        self.num_filters = num_filters
        self.checkerboard_parity = checkerboard_parity
        self._mask = None if checkerboard_parity is None else CheckerboardMask(checkerboard_parity)
        self.convs = [
            self._conv(num_filters, 3, "conv1", activation="relu", kernel_initializer="he_normal"),
            self._conv(num_filters, 1, "conv2", activation="relu", kernel_initializer="he_normal"),
            self._conv(output_channels, 3, "conv3", kernel_initializer="zeros"),
        ]

    def _conv(self, filters: int, size: int, name: str, **kwargs: Any) -> keras.layers.Conv2D:
        return keras.layers.Conv2D(
            filters, size, padding="same", dtype=self.dtype_policy, name=name, **kwargs
        )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the variables for inputs of `input_shape`, [B, H, W, C]."""
        *image, channels = input_shape
        channels += self._mask is not None
        for conv in self.convs:
            conv.build((*image, channels))
            channels = conv.filters

    def call(
        self, inputs: tf.Tensor, checkerboard_parity: int | tf.Tensor | None = None
    ) -> tf.Tensor:
        """Returns [B, H, W, output_channels] for inputs [B, H, W, C].

        Args:
          inputs: images.
          checkerboard_parity: another one than the layer's, for this call; may be a tensor.
        """
        mask = self._mask if checkerboard_parity is None else CheckerboardMask(checkerboard_parity)
        x = inputs
        if mask is not None:
            board = tf.broadcast_to(mask.board(x), tf.shape(x[..., :1]))
            x = tf.concat([x, board], axis=-1)
        for conv in self.convs:
            x = conv(x)
        return x

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the shape of the output for that of an input."""
        return (*input_shape[:-1], self.output_channels)

    def get_config(self) -> dict[str, Any]:
        """Returns what `from_config` needs."""
        return {
            **super().get_config(),
            "output_channels": self.output_channels,
            "num_filters": self.num_filters,
            "checkerboard_parity": self.checkerboard_parity,
        }
