"""The base class of this package's conditioners."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.internal import validation
from tfp_realnvp.internal.checkerboard import check_parity, checkerboard

__all__ = ["Conditioner"]


class Conditioner(keras.layers.Layer):
    r"""A network that predicts a coupling's parameters: [B, H, W, C] -> [B, H, W, K].

    Any Keras layer can be the network of an `AffineCoupling`. This base class has what those of
    this package share: the number K of output channels, and the checkerboard. For a checkerboard
    coupling half of the input is zero, so that the board goes in as one more channel, to tell a
    kept zero from a masked pixel.

    #### Example

    >>> import keras, tensorflow as tf
    >>> class OneByOne(Conditioner):
    ...   def build(self, input_shape):
    ...     self.conv = keras.layers.Conv2D(self.output_channels, 1)
    ...     self.conv.build((*input_shape[:-1], input_shape[-1] + 1))
    ...   def call(self, inputs):
    ...     return self.conv(self.with_board(inputs))
    >>> OneByOne(6, checkerboard_parity=0)(tf.ones([2, 4, 4, 3])).shape
    TensorShape([2, 4, 4, 6])

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, section 3.4.
    """

    def __init__(
        self, output_channels: int, *, checkerboard_parity: int | None = None, **kwargs: Any
    ) -> None:
        """Constructs the base.

        Args:
          output_channels: K, channels of the output.
          checkerboard_parity: parity of the coupling's `CheckerboardMask`; `None` for a
            channel-wise coupling, which needs no board.
          **kwargs: `name`, `dtype`, as in `keras.layers.Layer`.

        Raises:
          ValueError: if a number is out of range.
          TypeError: if `output_channels` is not a number.
        """
        super().__init__(**kwargs)
        self.output_channels = validation.integer(
            output_channels, 1, f"{self.name}: expected output_channels of at least 1"
        )
        if checkerboard_parity is not None:
            checkerboard_parity = check_parity(checkerboard_parity)
        self.checkerboard_parity = checkerboard_parity

    def with_board(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns [B, H, W, C + 1], the board as last channel, or the inputs without a board."""
        if self.checkerboard_parity is None:
            return inputs
        board = checkerboard(inputs, self.checkerboard_parity)
        return tf.concat([inputs, tf.broadcast_to(board, tf.shape(inputs[..., :1]))], axis=-1)

    def at_changed_positions(self, outputs: tf.Tensor) -> tf.Tensor:
        """Returns the outputs with zeros where the coupling keeps the image."""
        if self.checkerboard_parity is None:
            return outputs
        return outputs * (1 - checkerboard(outputs, self.checkerboard_parity))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the shape of the output for that of an input."""
        return (*input_shape[:-1], self.output_channels)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of `from_config`."""
        return {
            **super().get_config(),
            "output_channels": self.output_channels,
            "checkerboard_parity": self.checkerboard_parity,
        }
