"""A small conditioner: three convolutions."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.internal import validation
from tfp_realnvp.networks.conditioner import Conditioner

__all__ = ["ShallowConv"]


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class ShallowConv(Conditioner):
    r"""3×3, 1×1 and 3×3 convolutions with ReLU between them; the last one starts at zero.

    A coupling with it starts as the identity, so that many of them can be stacked and trained from
    the first step at a high learning rate. For a checkerboard coupling the board is one more input
    channel.

    #### Example

    >>> import tensorflow as tf
    >>> network = ShallowConv(6, num_filters=16, checkerboard_parity=0)
    >>> network(tf.ones([2, 8, 8, 3])).shape
    TensorShape([2, 8, 8, 6])

    #### References

    Kingma, Dhariwal: Glow, section 3.3 and table 1, for the shape of the network and its start.
    """

    def __init__(self, output_channels: int, num_filters: int = 64, **kwargs: Any) -> None:
        """Constructs the network.

        Args:
          output_channels: channels of the output.
          num_filters: feature maps of the first two convolutions.
          **kwargs: `checkerboard_parity`, as in `Conditioner`; `name`, `dtype`, as in
            `keras.layers.Layer`.

        Raises:
          ValueError: if a number is out of range.
          TypeError: if one of them is not a number.
        """
        super().__init__(output_channels, **kwargs)
        self.num_filters = validation.integer(
            num_filters, 1, f"{self.name}: expected num_filters of at least 1"
        )
        he_normal = {"activation": "relu", "kernel_initializer": "he_normal"}
        self.convs = [
            self._conv(self.num_filters, 3, "conv1", **he_normal),
            self._conv(self.num_filters, 1, "conv2", **he_normal),
            self._conv(self.output_channels, 3, "conv3", kernel_initializer="zeros"),
        ]

    def _conv(self, filters: int, size: int, name: str, **kwargs: Any) -> keras.layers.Conv2D:
        return keras.layers.Conv2D(
            filters, size, padding="same", dtype=self.dtype_policy, name=name, **kwargs
        )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the variables for inputs of `input_shape`, [B, H, W, C]."""
        *image, channels = input_shape
        channels += self.checkerboard_parity is not None
        for conv in self.convs:
            conv.build((*image, channels))
            channels = conv.filters

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns [B, H, W, output_channels] for inputs [B, H, W, C]."""
        x = self.with_board(inputs)
        for conv in self.convs:
            x = conv(x)
        return x

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of `from_config`."""
        return {**super().get_config(), "num_filters": self.num_filters}
