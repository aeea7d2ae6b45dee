"""A small conditioner: three convolutions."""

from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.internal import validation
from tfp_realnvp.networks.attention import SelfAttention
from tfp_realnvp.networks.conditioner import Conditioner
from tfp_realnvp.networks.functional import convolve


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class ShallowConv(Conditioner):
    r"""3×3, 1×1 and 3×3 convolutions with ReLU between them. The last convolution starts at zero.

    So a coupling starts as the identity, which allows a high learning rate from the first step. For
    a checkerboard coupling, the network adds the board as an input channel.

    The biases of the first two convolutions are linear functions of a condition vector. A 3×3
    convolution adds a condition image to the first output. With `num_heads`, self-attention
    precedes the last convolution.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> network = tfr.ShallowConv(6, num_filters=16, checkerboard_parity=0)
    >>> network(tf.ones([2, 8, 8, 3])).shape
    TensorShape([2, 8, 8, 6])

    #### References

    Kingma, Dhariwal: Glow, section 3.3 and table 1, for the architecture and its initialization.
    """

    def __init__(
        self, output_channels: int, num_filters: int = 64, *, num_heads: int = 0, **kwargs: Any
    ) -> None:
        """Constructs the network.

        Args:
          num_filters: number of filters of the first two convolutions.
          num_heads: number of self-attention heads; 0 for none.
          output_channels, **kwargs: as in `Conditioner`.

        Raises:
          TypeError, ValueError: if an argument is not a number, or out of range.
        """
        super().__init__(output_channels, **kwargs)
        self.num_filters = filters = validation.count(num_filters, "num_filters", 1, self.name)
        self.convs = [
            self._conv(filters, 3, "conv1", "he_normal"),
            self._conv(filters, 1, "conv2", "he_normal"),
            self._conv(self.output_channels, 3, "conv3", "zeros"),
        ]
        if self.takes_image:
            self.condition_conv = self._conv(filters, 3, "condition_conv", "zeros", use_bias=False)
        self.num_heads, self.attention = num_heads, None
        if num_heads:
            self.attention = SelfAttention(num_heads, name="attention", **self._nested_options)

    def _conv(
        self, filters: int, size: int, name: str, init: str, **kwargs: Any
    ) -> keras.layers.Conv2D:
        kwargs |= {"padding": "same", "data_format": "channels_last", **self._nested_options}
        return keras.layers.Conv2D(filters, size, kernel_initializer=init, name=name, **kwargs)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the variables for inputs of `input_shape`, [B, H, W, C]."""
        *image, channels = input_shape
        channels += self.checkerboard_parity is not None
        for conv in self.convs:
            conv.build((*image, channels))
            channels = conv.filters
        if self.takes_image:
            self.condition_conv.build((*image, self.conditional_event_shape[-1]))
        self._add_film(2, self.num_filters)
        if self.attention is not None:
            self.attention.build((*image, self.num_filters))

    def call(self, inputs: tf.Tensor, conditional_input: tf.Tensor | None = None) -> tf.Tensor:
        """Returns the parameters [B, H, W, K] for the kept half [B, H, W, C]."""
        conv1, conv2, conv3 = self.convs
        biases = self._shifted_biases(conditional_input, conv1.bias, conv2.bias)
        # Calling the Keras layers would trace more operations.
        x = convolve(self.with_board(inputs), conv1.kernel, biases[0])
        if self.takes_image:
            x += convolve(self.required(conditional_input), self.condition_conv.kernel)
        x = tf.nn.relu(convolve(tf.nn.relu(x), conv2.kernel, biases[1]))
        x = x if self.attention is None else self.attention(x)
        return convolve(x, conv3.kernel, conv3.bias)
